"""Hugging Face model directories and Megatron models, in both directions, without transformers or megatron-bridge.

| module | answers |
|---|---|
| `architecture` | what both sides must agree on, in neither side's words, and which family of models fits |
| `config_fields` | typed and bounded access to the fields of a `config.json` |
| `config_json` | `config.json` -> architecture |
| `megatron_flags` | architecture -> Megatron's flags, and Megatron's args -> architecture |
| `tensor_files` | which tensors a directory's safetensors files hold, their checked headers, slices of them |
| `mapping` | the one table: which rows of which Hugging Face tensors make up a Megatron parameter |
| `model` | a directory: its flags, its fingerprint, its checks (no torch) |
| `loading` | directory -> the parameters of this rank, with layers and experts numbered over the whole model |
| `saving` | the parameters of all ranks -> directory with its `config.json` |
| `special_tokens` | tokenizer, ids of special tokens and generation settings, from a source to an export |

    config.json ──► Architecture ◄──► Megatron flags / args
                        │
    safetensors ◄──► mapping ◄──► Megatron parameters (any TP x PP x EP)
"""

from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

__all__ = ["HuggingFaceModel"]  # the rest imports torch and Megatron: from its modules, once the device is chosen
