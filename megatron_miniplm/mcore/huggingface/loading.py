"""Fills the parameters of Megatron model chunks from a Hugging Face directory, on any TP x PP x EP layout.

Every rank reads for itself, and only the slices that it keeps: no rank ever holds a whole split matrix, and nothing is
sent between ranks.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import unwrap_model
from megatron.training import get_args

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.mapping import Layout, Piece, layout_of, local_spec_name, tensor_shapes
from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.tensor_files import SliceReader


@torch.no_grad()
def load_weights(chunks: Sequence[Any], model: HuggingFaceModel) -> None:
    """Fill every parameter of this rank's chunks; padded rows of the vocabulary become zero.

    Args:
        chunks: built from `model.megatron_flags()` and `model.take_vocabulary(args)`, possibly wrapped.
        model: of which `check_tensors` found nothing.

    Raises:
        InputError: a parameter has no counterpart, or another shape; or a tied model's `lm_head.weight` differs from
            its embedding.
    """
    shapes = tensor_shapes(model.architecture)
    padded_vocab_size = get_args().padded_vocab_size
    with SliceReader(model.tensors) as reader:
        for name, parameter in named_parameters(chunks):
            layout = layout_of(name, model.architecture, shapes, padded_vocab_size)
            if layout is None:
                raise InputError(f"{model.directory} has no tensors for {name} of this Megatron model")
            rank, world_size, _ = tensor_parallel_place(layout)
            pieces = layout.share(rank, world_size)
            _check_shape(name, parameter, layout, pieces, shapes, model)
            if name == "output_layer.weight" or name.startswith("embedding."):
                _check_tied_copy(pieces, model, reader)
            _fill(parameter, layout.axis, pieces, reader)


def _fill(parameter: torch.nn.Parameter, axis: int, pieces: Sequence[Piece], reader: SliceReader) -> None:
    """Write the pieces one after the other along `axis`, in the parameter's own dtype and memory."""
    offset = 0
    for piece in pieces:
        target = parameter.narrow(axis, offset, piece.size)
        if piece.tensor is None:
            target.zero_()
        else:
            target.copy_(reader.read(piece.tensor, axis=axis, start=piece.start, stop=piece.stop))
        offset += piece.size


def _check_shape(
    name: str,
    parameter: torch.nn.Parameter,
    layout: Layout,
    pieces: Sequence[Piece],
    shapes: dict[str, tuple[int, ...]],
    model: HuggingFaceModel,
) -> None:
    """The pieces must fill the parameter exactly."""
    expected = list(shapes[layout.tensors[0]])
    expected[layout.axis] = sum(piece.size for piece in pieces)
    if list(parameter.shape) != expected:
        raise InputError(
            f"{name} has shape {tuple(parameter.shape)} in this Megatron model, {model.directory} gives "
            f"{tuple(expected)}: the flags describe another model"
        )


def _check_tied_copy(pieces: Sequence[Piece], model: HuggingFaceModel, reader: SliceReader) -> None:
    """Where a tied model stores its output layer too, the copy must be equal in this rank's rows."""
    if not model.architecture.tied or "lm_head.weight" not in model.tensors:
        return
    for piece in pieces:
        if piece.tensor is not None:
            rows, copy = (
                reader.read(tensor, axis=0, start=piece.start, stop=piece.stop)
                for tensor in (piece.tensor, "lm_head.weight")
            )
            if not torch.equal(rows, copy):
                raise InputError(
                    f"{model.directory}: lm_head.weight differs from model.embed_tokens.weight, but "
                    "tie_word_embeddings is true: mend the config, or remove the tensor"
                )


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
