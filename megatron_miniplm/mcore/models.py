"""Build and load models through Megatron's own builders, for training and for scoring."""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file_samples, digest_values, hasher
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import InputError, UnsupportedMegatronError
from megatron_miniplm.mcore.checkpoint_trust import METADATA, require_harmless
from megatron_miniplm.mcore.megatron_output import hidden
from megatron_miniplm.mcore.program import megatron_errors, say_once
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


def model_provider(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> Any:
    """Megatron's `model_provider`: one pipeline stage of the model that the flags describe.

    0.19 builds GPT and hybrid models from config objects (`megatron.training.models`); the 0.18 wheel has no GPT
    builder, so there the same layer specs are put together here.
    """
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import argument_utils, get_args

    args = get_args()
    groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups()
    if getattr(args, "hybrid_layer_pattern", None):
        model_config = argument_utils.hybrid_config_from_args(args, config)
    elif hasattr(argument_utils, "gpt_config_from_args"):
        model_config = argument_utils.gpt_config_from_args(args, config)
        # Megatron's function forgets --rope-scaling-factor (training/argument_utils.py:464): all models would have 8.
        model_config.rope_scaling_factor = args.rope_scaling_factor
    else:
        return _build_gpt_without_builder(args, config, pre_process, post_process, vp_stage, groups)
    builder = model_config.get_builder_cls()(model_config)
    return builder.build_model(groups, pre_process=pre_process, post_process=post_process, vp_stage=vp_stage)


def _build_gpt_without_builder(
    args: argparse.Namespace, config: Any, pre_process: bool, post_process: bool, vp_stage: int | None, groups: Any
) -> Any:
    """GPTModel for megatron-core 0.18, as that release's `gpt_builders.py` (not in the wheel) makes it."""
    from megatron.core.models.gpt import GPTModel, gpt_layer_specs
    from megatron.training.arguments import core_transformer_config_from_args

    config = config or core_transformer_config_from_args(args)
    use_te = args.transformer_impl == "transformer_engine"
    if args.num_experts:
        spec = gpt_layer_specs.get_gpt_decoder_block_spec(
            config, use_transformer_engine=use_te, normalization=args.normalization, vp_stage=vp_stage
        )
    elif use_te:
        spec = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(qk_layernorm=args.qk_layernorm)
    else:
        spec = gpt_layer_specs.get_gpt_layer_local_spec(
            qk_layernorm=args.qk_layernorm, normalization=args.normalization
        )
    return GPTModel(
        config=config,
        transformer_layer_spec=spec,
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        seq_len_interpolation_factor=args.rotary_seq_len_interpolation_factor,
        vp_stage=vp_stage,
        pg_collection=groups,
    )


@hidden()
def load_for_scoring(args: argparse.Namespace) -> list[Any]:
    """Build the model that the flags describe and fill it from `--load-hf` or `--load`, for this rank's part of it.

    Returns:
        The model chunks of this rank (several only with virtual pipeline stages), in evaluation mode.

    Raises:
        InputError: there is no checkpoint, or it does not fit the flags.
    """
    from megatron.training import get_model
    from megatron.training.checkpointing import load_checkpoint

    args.no_load_optim = args.no_load_rng = True
    args.exit_on_missing_checkpoint = True
    args.perform_initialization = False  # random numbers for billions of weights that are overwritten at once
    chunks = get_model(model_provider, wrap_with_ddp=False)
    if getattr(args, "load_hf", None):
        from megatron_miniplm.mcore.huggingface.loading import load_weights
        from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

        load_weights(chunks, HuggingFaceModel.open(Path(args.load_hf)))
    else:
        say_once(f"loading {args.load}: a checkpoint can run programs as it is loaded, so load only what you trust")
        with megatron_errors(f"the checkpoint {args.load} with these flags (--use-checkpoint-args takes its own)"):
            load_checkpoint(chunks, None, None)
    for chunk in chunks:
        chunk.eval()
    return chunks


def take_output_weight(chunk: Any) -> Any:
    """Make a last stage return hidden states instead of logits, and hand out its rows of the output matrix.

    `GPTModel.forward` would project every position to logits, or use Megatron's loss, which counts padded rows. With
    `post_process` off it ends after the final layer norm: core/models/gpt/gpt_model.py:683 in 0.19.2, :663 in 0.18.2;
    hybrid/hybrid_model.py:551 and :526.

    Args:
        chunk: the model chunk of the last pipeline stage, possibly wrapped.

    Returns:
        (rows of this TP rank, hidden size), detached.

    Raises:
        UnsupportedMegatronError: the model has no such switch.
    """
    from megatron.core.utils import unwrap_model

    model = unwrap_model(chunk)
    for name in ("post_process", "share_embeddings_and_output_weights", "output_layer"):
        if not hasattr(model, name):
            raise UnsupportedMegatronError(
                f"{type(model).__name__} has no `{name}`: scoring needs a GPT or hybrid model"
            )
    tied = model.share_embeddings_and_output_weights
    weight = model.shared_embedding_or_output_weight() if tied else model.output_layer.weight
    model.post_process = False
    if getattr(model, "mtp_process", False):
        model.mtp_process = False  # layers that predict further tokens have no part in a score
    return weight.detach()


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
