"""Parameters of Megatron model chunks under names that hold over the whole model."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import unwrap_model

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.mapping import Layout, local_spec_name

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"(?<=\.local_experts\.)(\d+)")


def named_parameters(chunks: Sequence[Any]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each parameter of this rank once, under its local-spec name with layers and experts counted over all ranks.

    Args:
        chunks: GPT model chunks of this rank, possibly wrapped (mixed precision, DDP).

    Raises:
        InputError: a chunk keeps something besides parameters in its checkpoints, such as the router's expert bias.
    """
    for chunk in chunks:
        model = unwrap_model(chunk)
        _refuse_buffers(model)
        for name, parameter in model.named_parameters():
            yield _global_name(model, name), parameter


def _global_name(model: Any, name: str) -> str:
    name = local_spec_name(name)
    found = _LAYER.match(name)
    if found is None:
        return name
    layer = model.decoder.layers[int(found[1])]
    rest = _EXPERT.sub(lambda expert: str(layer.mlp.local_expert_indices[int(expert[1])]), found[2])
    return f"decoder.layers.{layer.layer_number - 1}.{rest}"  # layer_number counts from 1, over all stages


def _refuse_buffers(model: torch.nn.Module) -> None:
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                raise InputError(f"no Hugging Face family has a place for {prefix}.{name} of this Megatron model")


def tensor_parallel_place(layout: Layout) -> tuple[int, int, Any]:
    """Rank, size and process group of the tensor parallelism that cuts a parameter; experts have their own."""
    if layout.is_expert:
        return (
            mpu.get_expert_tensor_parallel_rank(),
            mpu.get_expert_tensor_parallel_world_size(),
            mpu.get_expert_tensor_parallel_group(),
        )
    return (
        mpu.get_tensor_model_parallel_rank(),
        mpu.get_tensor_model_parallel_world_size(),
        mpu.get_tensor_model_parallel_group(),
    )
