"""`Architecture` -> Megatron's flags, Megatron's args -> `Architecture`, and flags that contradict one."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import Architecture, RopeScaling

#: Flags that also decide what a model computes; one that `flags_of` does not give contradicts the architecture.
_OTHER_ARCHITECTURE_FLAGS = frozenset(
    [
        "--add-qkv-bias",
        "--qk-layernorm",
        "--qk-l2-norm",
        "--untie-embeddings-and-output-weights",
        "--use-rope-scaling",
        "--rope-scaling-factor",
        "--rotary-seq-len-interpolation-factor",
        "--rotary-percent",
        "--rotary-interleaved",
        "--no-rope-freq",
        "--window-size",
        "--window-attn-skip-freq",
        "--num-experts",
        "--moe-router-topk",
        "--moe-ffn-hidden-size",
        "--moe-layer-freq",
        "--moe-shared-expert-intermediate-size",
        "--moe-router-pre-softmax",
        "--moe-router-score-function",
        "--moe-router-enable-expert-bias",
        "--moe-router-topk-scaling-factor",
        "--moe-latent-size",
        "--apply-layernorm-1p",
        "--squared-relu",
        "--quick-geglu",
        "--multi-latent-attention",
        "--softmax-type",
        "--attention-output-gate",
        "--mtp-num-layers",
        "--hybrid-layer-pattern",
        "--spec",
        "--heterogeneous-layers-config-path",
        "--use-checkpoint-args",
        "--yaml-cfg",
    ]
)
#: Megatron's name of a setting -> the values that our families express; a setting that this Megatron lacks is unset.
_EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope",),
    "normalization": ("RMSNorm",),
    "swiglu": (True,),
    "add_bias_linear": (False,),
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "no_rope_freq": (None,),
    "window_attn_skip_freq": (None,),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "qk_l2_norm": (False,),
    "softmax_type": ("vanilla",),
    "attention_output_gate": (False,),
    "multi_latent_attention": (False,),
    "experimental_attention_variant": (None,),
    "squared_relu": (False,),
    "quick_geglu": (False,),
    "activation_func_clamp_value": (None,),
    "glu_linear_offset": (0.0,),
    "use_mup": (False,),
    "hybrid_layer_pattern": (None,),
    "spec": (None,),
    "mtp_num_layers": (None, 0),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "moe_layer_freq": (1,),
    "moe_shared_expert_intermediate_size": (None,),
    "moe_latent_size": (None,),
    "moe_router_load_balancing_type": ("aux_loss", "seq_aux_loss", "global_aux_loss", "none"),
    "moe_router_pre_softmax": (False,),
    "moe_router_score_function": ("softmax",),
    "moe_router_enable_expert_bias": (False,),
    "moe_router_topk_scaling_factor": (None,),
    "moe_router_num_groups": (None,),
    "moe_expert_capacity_factor": (None,),
    "moe_apply_probs_on_input": (False,),
}


def flags_of(architecture: Architecture) -> list[str]:
    """The Megatron flags that describe an architecture wholly; the vocabulary is the tokenizer's and the padding's."""
    flags = [
        *("--num-layers", str(architecture.num_layers)),
        *("--hidden-size", str(architecture.hidden_size)),
        *("--ffn-hidden-size", str(architecture.ffn_size)),
        *("--num-attention-heads", str(architecture.num_heads)),
        *("--group-query-attention", "--num-query-groups", str(architecture.num_groups)),
        *("--kv-channels", str(architecture.head_size)),
        *("--max-position-embeddings", str(architecture.max_positions)),
        *("--position-embedding-type", "rope", "--rotary-base", str(architecture.rotary_base)),
        *("--normalization", "RMSNorm", "--norm-epsilon", repr(architecture.norm_epsilon)),
        *("--swiglu", "--disable-bias-linear"),
    ]
    scaling = architecture.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        flags += ["--use-rope-scaling", "--rope-scaling-factor", repr(scaling.factor)]
    if scaling is not None and scaling.kind == "linear":
        flags += ["--rotary-seq-len-interpolation-factor", str(int(scaling.factor))]
    if architecture.window_tokens is not None:
        # Megatron counts the tokens before a position, Hugging Face the position too.
        flags += ["--window-size", f"{architecture.window_tokens - 1},0"]
    if architecture.qkv_bias:
        flags.append("--add-qkv-bias")
    if architecture.qk_norm:
        flags.append("--qk-layernorm")
    if not architecture.tied:
        flags.append("--untie-embeddings-and-output-weights")
    if architecture.num_experts is not None:
        flags += ["--num-experts", str(architecture.num_experts)]
        flags += ["--moe-router-topk", str(architecture.experts_per_token)]
        flags += ["--moe-ffn-hidden-size", str(architecture.ffn_size)]
    return flags


def refuse_contradictions(flags: Sequence[str], argv: Sequence[str], place: Path) -> None:
    """Compare what the user gave with what an architecture decides.

    Args:
        flags: from `flags_of`.
        argv: the user's command line.
        place: what decided, for the message.

    Raises:
        InputError: a flag of the user's has another value, or switches on what the architecture lacks.
    """
    decided = _by_flag(flags)
    for flag, given in _by_flag(argv).items():
        if flag in decided and [_number_or_text(value) for value in given] != [
            _number_or_text(value) for value in decided[flag]
        ]:
            raise InputError(
                f"{' '.join([flag, *given])} contradicts {place}, which says {' '.join([flag, *decided[flag]])}: "
                "leave the flag out"
            )
        if flag in _OTHER_ARCHITECTURE_FLAGS and flag not in decided:
            raise InputError(f"{flag} contradicts {place}, which decides the architecture: leave the flag out")


def _by_flag(argv: Sequence[str]) -> dict[str, list[str]]:
    """Long flags with their values, the last occurrence of each."""
    flags: dict[str, list[str]] = {}
    values: list[str] = []
    for argument in argv:
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            values = flags[name] = [value] if equals else []
        else:
            values.append(argument)
    return flags


def _number_or_text(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value.strip("()")  # of a tuple such as --window-size


def architecture_of_args(args: argparse.Namespace, vocab_size: int) -> Architecture:
    """What Megatron's validated args describe.

    Args:
        vocab_size: rows of the embedding that are real.

    Raises:
        InputError: a setting that no Hugging Face family expresses.
    """
    for name, accepted in _EXPRESSIBLE.items():
        found = getattr(args, name, accepted[0])
        if found not in accepted:
            raise InputError(f"no Hugging Face family expresses {name} = {found!r}: {accepted[0]!r} would do")
    num_experts = getattr(args, "num_experts", None)
    return Architecture(
        num_layers=args.num_layers,
        hidden_size=args.hidden_size,
        ffn_size=args.ffn_hidden_size if num_experts is None else args.moe_ffn_hidden_size,
        num_heads=args.num_attention_heads,
        num_groups=args.num_query_groups if args.group_query_attention else args.num_attention_heads,
        head_size=args.kv_channels,
        norm_epsilon=args.layernorm_epsilon,
        rotary_base=args.rotary_base,
        rope_scaling=_rope_scaling(args),
        window_tokens=_window_tokens(args.window_size),
        qkv_bias=args.add_qkv_bias,
        qk_norm=args.qk_layernorm,
        tied=not args.untie_embeddings_and_output_weights,
        vocab_size=vocab_size,
        max_positions=args.max_position_embeddings,
        num_experts=num_experts,
        experts_per_token=args.moe_router_topk if num_experts is not None else None,
    )


def _rope_scaling(args: argparse.Namespace) -> RopeScaling | None:
    interpolation = args.rotary_seq_len_interpolation_factor
    if args.use_rope_scaling and interpolation is not None:
        raise InputError("no Hugging Face family has --use-rope-scaling and --rotary-seq-len-interpolation-factor both")
    if args.use_rope_scaling:
        return RopeScaling(kind="llama3", factor=float(args.rope_scaling_factor))
    return None if interpolation is None else RopeScaling(kind="linear", factor=float(interpolation))


def _window_tokens(window_size: tuple[int, int] | None) -> int | None:
    if window_size is None:
        return None
    before, after = window_size
    if before < 0 or after != 0:
        raise InputError(f"no Hugging Face family expresses window_size = {window_size}: (N, 0) would do")
    return before + 1


def require_equal(expected: Architecture, found: Architecture, place: Path) -> None:
    """Refuse args that came to describe another model than a directory, by whatever road (a YAML file, a default).

    Raises:
        InputError: names each difference.
    """
    theirs, ours = dataclasses.asdict(expected), dataclasses.asdict(found)
    differences = [
        f"{name} is {theirs[name]} there and {ours[name]} here" for name in theirs if theirs[name] != ours[name]
    ]
    if differences:
        raise InputError(f"{place} does not fit the flags: {'; '.join(differences)}: leave these flags out")
