"""Build and load models through Megatron's own builders, for training and for scoring."""

import argparse
from pathlib import Path
from typing import Any

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.mcore.megatron_output import hidden
from megatron_miniplm.mcore.program import megatron_errors, say_once


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
