"""The seam: everything that depends on which Megatron is installed, and on whether there is a GPU.

| module | answers |
|---|---|
| `versions` | is this Megatron one that we support; one replaced attribute: where, and whether it looks as expected |
| `cpu_emulation` | unmodified Megatron on a machine without a GPU: every patch, with the line that needs it |
| `device_flags` | the Megatron flags that a run without a GPU or without Transformer Engine needs |
| `huggingface` | Hugging Face model directories, in both directions |
| `inference_emulation` | what `megatron.core.inference` needs beside |
| `identity`, `replica` | jobs in which a model reads a corpus: what both are, who shares work, signals |
| `packed_attention` | packed rows for layers without Transformer Engine |
| `program` | start of every Megatron program of ours: device, flags, process groups, errors to exit codes |
| `checkpoints`, `checkpoint_trust` | what a checkpoint says of itself, and whether loading it is harmless |
| `models` | build and load a model through Megatron's builders |
| `conversion` | the two halves of `miniplm convert-checkpoint` |
| `flops` | operations of a model, forward and backward |
| `doctor` | what is installed and what each absence costs |

Stages outside this package name no Megatron version and patch nothing, but for `training.plugin`.
"""
