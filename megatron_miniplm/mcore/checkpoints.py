"""What Megatron checkpoints on disk say of themselves: where they are, what they were trained with, their identity."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file_samples, digest_values, hasher
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.checkpoint_trust import METADATA, require_harmless
from megatron_miniplm.runtime.command_line import MissingFlagError

#: What decides a decoder's function beside its weights, by its name in Megatron's args. A checkpoint and the flags must
#: agree on each; several (rotary base, epsilon) shape no tensor, so that a mismatch would load without a word and score
#: wrongly.
ARCHITECTURE = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "group_query_attention",
    "num_query_groups",
    "kv_channels",
    "position_embedding_type",
    "rotary_base",
    "rotary_percent",
    "rotary_interleaved",
    "rotary_seq_len_interpolation_factor",
    "use_rope_scaling",
    "rope_scaling_factor",
    "normalization",
    "layernorm_epsilon",
    "layernorm_zero_centered_gamma",
    "qk_layernorm",
    "qk_l2_norm",
    "window_size",
    "softmax_type",
    "attention_output_gate",
    "multi_latent_attention",
    "swiglu",
    "squared_relu",
    "quick_geglu",
    "add_bias_linear",
    "add_qkv_bias",
    "untie_embeddings_and_output_weights",
    "apply_query_key_layer_scaling",
    "num_experts",
    "moe_router_topk",
    "hybrid_layer_pattern",
    "padded_vocab_size",
)

#: In the args of a converted checkpoint: what its Hugging Face source says about generation.
GENERATION = "miniplm_generation"
TRACKER = "latest_checkpointed_iteration.txt"
#: `StorageMeta.save_id`, which torch draws anew for every save, in the pickle of `.metadata` (protocol 4 and later).
_SAVE_ID = re.compile(rb"(?<=\x07save_id\x94\x8c\x24)[0-9a-f-]{36}")


def has_checkpoint(directory: Path) -> bool:
    """Whether a checkpoint was written to its end: the tracker is the last file, and a kill may leave it empty."""
    tracker = directory / TRACKER
    return tracker.is_file() and tracker.stat().st_size > 0


def checkpoint_directory(load: str | None, step: int | None = None) -> Path:
    """The directory of the iteration that `--load` would read, such as `CKPT/iter_0000500`.

    Args:
        step: `--ckpt-step`, which Megatron takes for the iteration unless the tracker says `release`.

    Raises:
        InputError: no checkpoint there, or one that may run programs when it is loaded.
    """
    if load is None:
        raise MissingFlagError("--load", "give the directory of a Megatron checkpoint")
    tracker = Path(load) / TRACKER
    try:
        iteration = tracker.read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{load} is not a Megatron checkpoint: it has no {tracker.name}") from None
    if iteration != "release" and not iteration.isdecimal():
        raise InputError(f"{tracker} holds {iteration[:40]!r}, expected an iteration or 'release': write it again")
    chosen = step if step and iteration != "release" else None  # 0 is no choice: checkpointing.py:1664
    if chosen and not (Path(load) / f"iter_{chosen:07d}").is_dir():
        raise InputError(f"{load} has no iteration {chosen}: give one that it has, or none for the latest")
    directory = Path(load) / ("release" if iteration == "release" else f"iter_{chosen or int(iteration):07d}")
    if not directory.is_dir():
        raise InputError(f"{tracker} names iteration {iteration}, but {directory} does not exist")
    require_harmless(directory)
    return directory


def check_architecture(args: argparse.Namespace, directory: Path) -> None:
    """Compare the flags with those that the checkpoint was trained with.

    Raises:
        InputError: they differ; the message names each flag with both values.
    """
    differences = [
        f"{name} is {theirs} there and {getattr(args, name, None)} here"
        for name, theirs in _trained_architecture(directory).items()
        if theirs != getattr(args, name, None) and not (name == "num_query_groups" and not args.group_query_attention)
    ]
    if differences:
        raise InputError(
            f"the checkpoint {directory} does not fit the flags: {'; '.join(differences)}: "
            "mend the flags, or give --use-checkpoint-args"
        )


def take_architecture(args: argparse.Namespace, directory: Path) -> None:
    """What Megatron's `--use-checkpoint-args` leaves out: epsilon, q/k norm, rope scaling and other quiet ones.

    `load_args_from_checkpoint` (training/checkpointing.py:1894) restores sizes and most switches before validation; the
    rest only matters when the model is built, and is taken over here.
    """
    for name, value in _trained_architecture(directory).items():
        setattr(args, name, value)


def _trained_architecture(directory: Path) -> dict[str, Any]:
    """The part of `ARCHITECTURE` that a checkpoint records; nothing in the legacy format, which keeps no such file."""
    trained = recorded_args(directory)
    return {name: getattr(trained, name) for name in ARCHITECTURE if hasattr(trained, name)}


def recorded_vocab_size(directory: Path) -> int | None:
    """Rows of the vocabulary that are real, if a checkpoint says so: `convert-checkpoint` and `--vocab-size` leave it.

    Megatron's own checkpoints know the padded size only, unless the tokenizer's size was a flag.
    """
    return getattr(recorded_args(directory), "vocab_size", None)


def recorded_precision_flags(directory: Path) -> list[str]:
    """`--bf16` or `--fp16` as a checkpoint was saved, which `--use-checkpoint-args` leaves out; none for float32."""
    recorded = recorded_args(directory)
    return [f"--{name}" for name in ("bf16", "fp16") if getattr(recorded, name, False)]


def recorded_trained_tokens(directory: Path) -> int | None:
    """Tokens that a model had been trained on when a checkpoint was saved; None where that does not say."""
    recorded = vars(recorded_args(directory) or argparse.Namespace())
    return recorded.get("consumed_train_samples", 0) * recorded.get("seq_length", 0) or None


def recorded_training_data(directory: Path) -> tuple[Path, ...]:
    """Prefixes that a checkpoint was trained on, as the flags that it was saved with name them."""
    from megatron.core.datasets.utils import get_blend_from_list

    recorded = vars(recorded_args(directory) or argparse.Namespace())
    words = recorded.get("train_data_path") or recorded.get("data_path") or []
    try:
        if path := recorded.get("data_args_path"):
            words = Path(path).read_text(encoding="utf-8").split()
        elif path := recorded.get("per_split_data_args_path"):
            words = json.loads(Path(path).read_text(encoding="utf-8"))["train"]
        prefixes, _ = get_blend_from_list(words) if words else ([], None)
    except (OSError, ValueError, KeyError):
        return ()  # a file of long ago
    return tuple(map(Path, prefixes))


def recorded_args(directory: Path) -> argparse.Namespace | None:
    """The args that a `torch_dist` checkpoint was saved with; None for the legacy format."""
    from megatron.core import dist_checkpointing

    if not dist_checkpointing.check_is_distributed_checkpoint(str(directory)):
        return None
    return dist_checkpointing.load_common_state_dict(str(directory)).get("args")


def architecture(args: argparse.Namespace) -> dict[str, Any]:
    """The architecture part of a model's identity, as it will be read back from JSON."""
    values = {name: getattr(args, name, None) for name in ARCHITECTURE}
    return json.loads(json.dumps(values, default=str))


def weights_fingerprint(directory: Path) -> Fingerprint:
    """Identity of a checkpoint by the names, sizes and samples of its files; another training step gives another.

    A checkpoint that the same command saves again, such as a conversion that was repeated, has the same fingerprint.
    """
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return digest_values([(str(path.relative_to(directory)), _digest_without_save_id(path)) for path in files])


def _digest_without_save_id(path: Path) -> Fingerprint:
    if path.name != METADATA:
        return digest_file_samples(path)
    digest = hasher()
    with open_regular(path) as stream:
        digest.update(_SAVE_ID.sub(b"", stream.read()))
    return digest.hexdigest()
