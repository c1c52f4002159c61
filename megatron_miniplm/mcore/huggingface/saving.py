"""Writes a Megatron model as a Hugging Face directory, from any TP x PP x EP layout.

A parameter is gathered over tensor parallelism, cut into Hugging Face tensors and written by one rank of its pipeline
stage (of its expert-parallel rank, for experts), so that memory is bounded by a shard file. The directory appears under
its name only when it is whole.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from megatron.core import mpu

from megatron_miniplm.artifacts.atomic import atomic_output, write_json
from megatron_miniplm.artifacts.directories import whole_directory
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import FAMILIES, Architecture, family_of, misfits
from megatron_miniplm.mcore.huggingface.config_json import LLAMA3_CONSTANTS
from megatron_miniplm.mcore.huggingface.loading import named_parameters, tensor_parallel_place
from megatron_miniplm.mcore.huggingface.mapping import Layout, block_size, layout_of, tensor_shapes
from megatron_miniplm.mcore.huggingface.model import CONFIG_FILE, TOKENIZER_FILES
from megatron_miniplm.mcore.huggingface.special_tokens import GENERATION_FILE, UNKNOWN, GenerationSettings
from megatron_miniplm.mcore.huggingface.tensor_files import INDEX_FILE, SINGLE_FILE, unwritable
from megatron_miniplm.mcore.program import alike_on_all_ranks, on_rank_zero

MAX_SHARD_BYTES = 5_000_000_000  # transformers' own bound


@torch.no_grad()
def save_huggingface(
    chunks: Sequence[Any],
    architecture: Architecture,
    directory: Path,
    *,
    padded_vocab_size: int,
    family: str | None = None,
    tokenizer_dir: Path | None = None,
    generation: GenerationSettings = UNKNOWN,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `config.json`, safetensors and the tokenizer's files; a collective call of all ranks.

    Args:
        chunks: GPT model chunks of this rank, possibly wrapped.
        architecture: from `megatron_flags.architecture_of_args`; its `vocab_size` decides which rows are written.
        directory: must not exist yet; on a file system that all ranks see.
        padded_vocab_size: of the chunks, over all ranks.
        family: a `model_type` to force where several fit (a Llama is a Mistral without a window).
        tokenizer_dir: a Hugging Face tokenizer to copy.
        generation: ids of special tokens, and how the model generates.
        max_shard_bytes: of a file; a single tensor may exceed it.

    Raises:
        InputError: the directory exists, no family (or not the forced one) expresses the model, or a rank cannot
            write its files; nothing is left of those that were written.
    """
    family = on_rank_zero(lambda: _checked_family(architecture, directory, family))
    with _shared_by_ranks(whole_directory(directory)) as temporary:
        writer = _ShardWriter(temporary, max_shard_bytes)
        dtype = _write_tensors(chunks, architecture, padded_vocab_size, writer)
        outcomes: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(outcomes, (writer.shards, dtype, writer.failure))
        with alike_on_all_ranks():
            for _, _, failure in outcomes:
                if failure is not None:
                    raise unwritable(directory, failure)
        config = config_of_architecture(architecture, family, next(found for _, found, _ in outcomes if found))
        on_rank_zero(lambda: _finish(temporary, [found for found, _, _ in outcomes], config, tokenizer_dir, generation))


@contextmanager
def _shared_by_ranks(directory: AbstractContextManager[Path]) -> Iterator[Path]:
    """A context that rank 0 enters and leaves, with its value on every rank; a collective call."""
    with ExitStack() as stack:
        yield on_rank_zero(lambda: stack.enter_context(directory))
        on_rank_zero(stack.close)


def _checked_family(architecture: Architecture, directory: Path, family: str | None) -> str:
    if directory.exists():
        raise InputError(f"{directory} exists already: give another directory, or delete it")
    if family is None:
        return family_of(architecture)
    if family not in FAMILIES:
        raise InputError(f"{family!r} is no family that we know: {', '.join(FAMILIES)}")
    if reasons := misfits(architecture, family):
        raise InputError(f"{family} does not express this model: it {', '.join(reasons)}")
    return family


def _write_tensors(
    chunks: Sequence[Any], architecture: Architecture, padded_vocab_size: int, writer: "_ShardWriter"
) -> str | None:
    """Gather and write; returns the dtype of the parameters."""
    shapes = tensor_shapes(architecture)
    dtype = None
    for name, parameter in named_parameters(chunks):
        layout = layout_of(name, architecture, shapes, padded_vocab_size)
        if layout is None:
            raise InputError(f"no Hugging Face family has a place for {name} of this Megatron model")
        if name == "output_layer.weight" and architecture.tied:
            continue  # the last stage's copy of the embedding
        whole = _gather(parameter, layout)
        if whole is None:
            continue
        dtype = str(whole.dtype).removeprefix("torch.")
        for tensor_name, tensor in _cut(whole, layout, shapes).items():
            writer.add(tensor_name, tensor)
    writer.flush()
    return dtype


def _gather(parameter: torch.nn.Parameter, layout: Layout) -> torch.Tensor | None:
    """The whole parameter on the CPU of the rank that writes it, None on the others; collective over its TP group.

    Returns:
        The blocks of the layout, whole, one after the other along its axis.
    """
    rank, world_size, group = tensor_parallel_place(layout)
    replica = mpu.get_expert_data_parallel_rank() if layout.is_expert else mpu.get_data_parallel_rank()
    if replica != 0:
        return None  # the whole TP group is a replica, so nobody waits for it
    local = parameter.detach()
    if not layout.is_split or world_size == 1:
        return local.cpu() if rank == 0 else None
    shares = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(world_size)]
    torch.distributed.all_gather(shares, local.contiguous(), group=group)
    if rank != 0:
        return None
    sizes = [block_size(block) // world_size for block in layout.blocks]
    parts = [share.cpu().split(sizes, dim=layout.axis) for share in shares]
    return torch.cat([part[block] for block in range(len(sizes)) for part in parts], dim=layout.axis)


def _cut(whole: torch.Tensor, layout: Layout, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The Hugging Face tensors of a whole parameter; padding is dropped."""
    tensors = {name: whole.new_empty(shapes[name]) for name in layout.tensors}
    offset = 0
    for piece in (piece for block in layout.blocks for piece in block):
        if piece.tensor is not None:
            target = tensors[piece.tensor].narrow(layout.axis, piece.start, piece.size)
            target.copy_(whole.narrow(layout.axis, offset, piece.size))
        offset += piece.size
    return tensors


class _ShardWriter:
    """Collects tensors and writes them in files of a bounded size.

    After a failure nothing more is written, but tensors are taken, so that the ranks stay in step.

    Attributes:
        shards: file name -> names and bytes of its tensors.
        failure: why a file could not be written.
    """

    def __init__(self, directory: Path, max_shard_bytes: int) -> None:
        self.shards: dict[str, dict[str, int]] = {}
        self.failure: str | None = None
        self._directory = directory
        self._max_shard_bytes = max_shard_bytes
        self._tensors: dict[str, torch.Tensor] = {}
        self._num_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if self.failure is not None:
            return
        if self._tensors and self._num_bytes + tensor.nbytes > self._max_shard_bytes:
            self.flush()
        self._tensors[name] = tensor
        self._num_bytes += tensor.nbytes

    def flush(self) -> None:
        """Write what was collected, if anything, and make it durable."""
        if not self._tensors:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        rank = torch.distributed.get_rank()
        path = self._directory / f"rank-{rank:05d}-{len(self.shards):05d}.safetensors"
        try:
            save_file(self._tensors, str(path), metadata={"format": "pt"})  # transformers asks for this key
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
        except (SafetensorError, OSError) as error:
            self.failure = str(error)
        self.shards[path.name] = {name: tensor.nbytes for name, tensor in self._tensors.items()}
        self._tensors, self._num_bytes = {}, 0


def _finish(
    temporary: Path,
    shards_of_ranks: Sequence[dict[str, dict[str, int]]],
    config: dict[str, Any],
    tokenizer_dir: Path | None,
    generation: GenerationSettings,
) -> None:
    """Number the shards of all ranks, and write index, config, generation settings and tokenizer."""
    shards = [shard for shards in shards_of_ranks for shard in shards.items()]
    weight_map: dict[str, str] = {}
    for number, (file_name, tensors) in enumerate(shards, start=1):
        final = SINGLE_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        os.replace(temporary / file_name, temporary / final)
        weight_map |= dict.fromkeys(tensors, final)
    if len(shards) > 1:
        total_bytes = sum(num_bytes for _, tensors in shards for num_bytes in tensors.values())
        index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(temporary / INDEX_FILE, index)
    if tokenizer_dir is not None:
        for name in TOKENIZER_FILES:
            if (tokenizer_dir / name).is_file():
                with open(tokenizer_dir / name, "rb") as source, atomic_output(temporary / name) as target:
                    shutil.copyfileobj(source, target)
    token_ids, generation_config = generation.files()
    write_json(temporary / GENERATION_FILE, generation_config)
    write_json(temporary / CONFIG_FILE, {**config, **token_ids})


def config_of_architecture(architecture: Architecture, family_name: str, dtype: str) -> dict[str, Any]:
    """The `config.json` of an architecture, without the ids of special tokens.

    Args:
        family_name: a key of `FAMILIES` that fits.
        dtype: `float32`, `bfloat16` or `float16`.
    """
    family = FAMILIES[family_name]
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family_name,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_groups,
        "head_dim": architecture.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": architecture.max_positions,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_theta": float(architecture.rotary_base),
        "rope_scaling": None,
        "tie_word_embeddings": architecture.tied,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if architecture.rope_scaling is not None:
        scaling = architecture.rope_scaling
        constants = LLAMA3_CONSTANTS if scaling.kind == "llama3" else {}
        config["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor, **constants}
    if family_name == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    if family.has_window:
        config["sliding_window"] = architecture.window_tokens
    if family.window_switch:
        config |= {"use_sliding_window": architecture.window_tokens is not None, "max_window_layers": 0}
    if family.has_experts:
        config |= {"num_local_experts": architecture.num_experts, "num_experts_per_tok": architecture.experts_per_token}
    return config
