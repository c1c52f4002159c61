"""Hugging Face model directories and Megatron models, in both directions, without transformers or megatron-bridge.

| module | answers |
|---|---|
| `architecture` | what both sides must agree on, in neither side's words |
| `config_json` | `config.json` -> architecture, and back, for every family that we know |
| `megatron_flags` | architecture -> Megatron's flags, and Megatron's args -> architecture |
| `tensor_files` | which tensors a directory's safetensors files hold, and slices of them |
| `mapping` | the one table: which rows of which Hugging Face tensors make up a Megatron parameter |
| `model` | a directory: its flags, its fingerprint, its checks (no torch) |
| `parameters` | the parameters of Megatron model chunks, with layers and experts numbered over the whole model |
| `loading` | directory -> the parameters of this rank |
| `saving` | the parameters of all ranks -> directory |
| `conversion` | the two halves of `miniplm convert-checkpoint` |

    config.json ──► Architecture ◄──► Megatron flags / args
                        │
    safetensors ◄──► mapping ◄──► Megatron parameters (any TP x PP x EP)
"""

from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

__all__ = ["HuggingFaceModel"]  # the rest imports torch and Megatron: from its modules, once the device is chosen
