"""`--miniplm-dry-run`: what a training command would do, on one process and without a GPU.

The flags are parsed, the model is built on PyTorch's meta device (shapes without memory), and the three datasets are
built as training builds them. Nothing is trained or loaded, and nothing is left on disk: index caches are built in a
temporary directory (below TMPDIR) unless --data-cache-path holds them already.
"""

import argparse
import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training import argument_utils, get_args, training

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import program
from megatron_miniplm.mcore.models import model_provider
from megatron_miniplm.runtime.terminal import printable
from megatron_miniplm.training.provider import train_valid_test_datasets_provider

#: Letter of a `--hybrid-layer-pattern` -> what Megatron needs to build such a layer: module, and how to get it.
HYBRID_NEEDS = {"M": ("mamba_ssm", "pip install --no-build-isolation mamba-ssm causal-conv1d, on a machine with CUDA")}
#: Hybrid models have no layers without Transformer Engine (core/models/hybrid/hybrid_layer_specs.py:5).
TRANSFORMER_ENGINE = ("transformer_engine", "pip install --no-build-isolation transformer-engine[pytorch]")
LABEL_WIDTH = 24
TEXT_CHARACTERS = 72


def dry_run(args: argparse.Namespace) -> None:
    """Print the model, the schedule and the data of a training command, and return.

    Raises:
        InputError: started on several processes, or Megatron refuses the model or the data.
    """
    with program.alike_on_all_ranks():
        if args.world_size > 1:
            raise InputError(
                f"--miniplm-dry-run on {args.world_size} processes: start it with plain python, and with 1 as tensor, "
                "pipeline and context parallel size"
            )
    program.initialize()
    args = get_args()
    args.miniplm_dry_run = False  # seen to; what else meets the flag takes it for one that would be ignored
    lines: list[str] = []
    try:
        for part in (_model_lines, _training_lines, _data_lines):
            lines.extend(part(args))
    finally:
        print(
            printable("\n".join(lines)), flush=True
        )  # one table, after all that Megatron logs; also where the data is refused
    program.shut_down()


def _model_lines(args: argparse.Namespace) -> Iterator[str]:
    yield "model"
    yield _row("architecture", _architecture(args))
    padding = args.padded_vocab_size - (vocab_size := _vocab_size(args))
    tied = "untied" if args.untie_embeddings_and_output_weights else "tied"
    yield _row("vocabulary", f"{vocab_size:,} and {padding:,} rows of padding; input and output embeddings {tied}")
    if missing := _missing_kernels(args):
        yield _row("parameters", "not counted: the model was not built")
        yield from (_row("", f"{module} is missing: {remedy}") for module, remedy in missing)
        _check_config(args)
        return
    with program.megatron_errors("this model"):
        total, embedding = _count_parameters(args)
    yield _row("parameters", f"{total:,}")
    yield _row("  embedding", f"{embedding:,}")
    yield _row("  non-embedding", f"{total - embedding:,}")


def _training_lines(args: argparse.Namespace) -> Iterator[str]:
    if args.train_samples:
        training.update_train_iters(args)  # as `pretrain` does before it builds the data
    tokens_per_batch = args.global_batch_size * args.seq_length
    num_tokens = tokens_per_batch * args.train_iters
    flops = training.num_floating_point_operations(args, args.global_batch_size) * args.train_iters
    yield "training"
    yield _row("batch", f"{args.global_batch_size:,} rows of {args.seq_length:,} tokens = {tokens_per_batch:,} tokens")
    yield _row("steps", f"{args.train_iters:,}")
    yield _row("tokens", f"{num_tokens:,} ({num_tokens / 1e9:.3g} billion)")
    yield _row("operations", f"{flops:.3g} (by Megatron's count, forward and backward)")
    warmup = f"{args.lr_warmup_iters:,} steps of warm-up" if args.lr_warmup_iters else "as --lr-warmup-* says"
    yield _row("learning rate", f"{args.lr:g} to {args.min_lr or 0:g}, {args.lr_decay_style}, {warmup}")
    if getattr(args, "miniplm_kd_teacher", None):
        yield _row(
            "distillation", f"{args.miniplm_kd_alpha:g} of the loss, from {args.miniplm_kd_teacher} (not loaded)"
        )


def _data_lines(args: argparse.Namespace) -> Iterator[str]:
    place = args.data_cache_path or "a directory beside the data"
    with tempfile.TemporaryDirectory(prefix="miniplm-dry-run-") as directory:
        if args.data_cache_path:
            _link_caches(Path(args.data_cache_path), Path(directory))
        args.data_cache_path = directory
        yield from _dataset_tables()
        built = sum(path.stat().st_size for path in Path(directory).iterdir() if not path.is_symlink())
    yield _row("index caches", f"{built:,} bytes, removed again; training will write them to {place}")


def _link_caches(kept: Path, directory: Path) -> None:
    """Let what a run has cached already be found in `directory`."""
    for pattern in ("*.npy", "*.txt"):  # no locks
        for path in kept.glob(pattern):
            (directory / path.name).symlink_to(path.absolute())


def _dataset_tables() -> Iterator[str]:
    sizes = training.get_train_valid_test_num_samples()
    datasets = train_valid_test_datasets_provider(list(sizes))
    yield "data"
    for split, wanted, dataset in zip(("train", "valid", "test"), sizes, datasets, strict=True):
        for one in dataset if isinstance(dataset, list) else [dataset]:
            yield from _dataset_lines(split, wanted, one)
    if datasets[0] is not None:
        yield from _sample_lines(datasets[0])


def _dataset_lines(split: str, wanted: int | None, dataset: Any) -> Iterator[str]:
    """One line for a split, and one for each prefix that it draws from."""
    if dataset is None:
        yield _row(split, "none")
        return
    asked = "all that there are" if wanted is None else f"{wanted:,} needed"
    yield _row(split, f"{len(dataset):,} samples ({asked})")
    for part in getattr(dataset, "datasets", [dataset]):
        if isinstance(part, GPTDataset):
            # What an epoch holds; a selection leaves sequences out without changing `part.indices`.
            sequences = np.unique(part.document_index)
            tokens = int(part.dataset.sequence_lengths[sequences].sum(dtype=np.int64))
            epochs = (part.num_samples or len(part)) * part.config.sequence_length / tokens
            yield _row("", f"{part.dataset_path}: {len(sequences):,} sequences, {tokens:,} tokens, {epochs:.3g} epochs")


def _sample_lines(dataset: Any) -> Iterator[str]:
    sample = {name: value for name, value in dataset[0].items() if not name.startswith("miniplm")}
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in sample.items() if value.ndim)
    yield _row("first sample", shapes)
    text = dataset.config.tokenizer.detokenize(sample["tokens"].tolist())
    yield _row("", repr(text[:TEXT_CHARACTERS]) + ("..." if len(text) > TEXT_CHARACTERS else ""))


def _row(label: str, value: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{value}"


def _architecture(args: argparse.Namespace) -> str:
    if args.hybrid_layer_pattern:
        return (
            f"hybrid, {args.num_layers} layers {args.hybrid_layer_pattern}, hidden {args.hidden_size}, "
            f"state {args.mamba_state_dim} in {args.mamba_num_groups} groups, heads of {args.mamba_head_dim}"
        )
    groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
    return (
        f"GPT, {args.num_layers} layers, hidden {args.hidden_size}, FFN {args.ffn_hidden_size}, "
        f"{args.num_attention_heads} heads of {args.kv_channels} ({groups} of keys and values)"
    )


def _vocab_size(args: argparse.Namespace) -> int:
    return int(build_tokenizer(args).vocab_size)


def _missing_kernels(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Packages without which Megatron cannot build this model, each with the command that installs it."""
    pattern = args.hybrid_layer_pattern or ""
    needs = [TRANSFORMER_ENGINE] if pattern else []
    needs += [need for letter, need in HYBRID_NEEDS.items() if letter in pattern]
    return [(module, remedy) for module, remedy in needs if importlib.util.find_spec(module) is None]


def _check_config(args: argparse.Namespace) -> None:
    """What can be checked of a hybrid model without its kernels: Megatron's own config, with its validation."""
    with program.megatron_errors("this model"):
        argument_utils.hybrid_config_from_args(args)


def _count_parameters(args: argparse.Namespace) -> tuple[int, int]:
    """All parameters, and those of the embeddings (input and, where it is untied, output).

    Without Transformer Engine, shapes alone are made: 1.2 billion parameters take a second and no memory.
    """
    args.init_model_with_meta_device = True
    args.perform_initialization = False
    with torch.device("meta"):
        model = model_provider()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    embeddings = ("embedding.word_embeddings.", "embedding.position_embeddings.", "output_layer.")
    return sum(sizes.values()), sum(size for name, size in sizes.items() if name.startswith(embeddings))
