"""Hugging Face model directories and Megatron models, in both directions, without transformers or megatron-bridge.

| module | answers |
|---|---|
| `architecture` | what both sides must agree on, in neither side's words |
| `families` | which families of models Megatron's decoder expresses, and which of them fits an architecture |
| `config_fields` | typed and bounded access to the fields of a `config.json` |
| `config_json` | `config.json` -> architecture |
| `config_writing` | architecture -> `config.json` |
| `megatron_flags` | architecture -> Megatron's flags, and Megatron's args -> architecture |
| `hub` | the name of a model on the hub -> its directory in this machine's cache |
| `safetensors_header` | the checked header of one safetensors file |
| `tensor_files` | which tensors a directory's safetensors files hold, and slices of them |
| `mapping` | the one table: which rows of which Hugging Face tensors make up a Megatron parameter |
| `model` | a directory: its flags, its fingerprint, its checks (no torch) |
| `parameters` | the parameters of Megatron model chunks, with layers and experts numbered over the whole model |
| `loading` | directory -> the parameters of this rank |
| `saving` | the parameters of all ranks -> directory |
| `special_tokens` | ids of special tokens and generation settings, from a source to an export |
| `export_tokens` | which tokenizer and which of these go with an exported checkpoint |
| `disk_space` | whether a model fits on a disk, and what to say when a write fails |
| `conversion` | the two halves of `miniplm convert-checkpoint` |

    config.json ──► Architecture ◄──► Megatron flags / args
                        │
    safetensors ◄──► mapping ◄──► Megatron parameters (any TP x PP x EP)
"""

from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

__all__ = ["HuggingFaceModel"]  # the rest imports torch and Megatron: from its modules, once the device is chosen
