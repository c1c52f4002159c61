"""Decoders that both Megatron and our Hugging Face families express, in neither side's words, and these families."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megatron_miniplm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the first ones.

    Attributes:
        kind: `linear` divides all positions by the factor; `llama3` divides the low frequencies only.
        factor: at least 1.
    """

    kind: Literal["linear", "llama3"]
    factor: float


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A pre-norm decoder with RMSNorm, rotary positions, SwiGLU and grouped queries; one expert-less or all-expert MLP.

    Attributes:
        ffn_size: width of the MLP, or of one expert.
        num_groups: key/value heads.
        head_size: channels of one head; `num_heads * head_size` need not be the hidden size.
        rotary_base: an integer, as Megatron's `--rotary-base`.
        window_tokens: how many tokens a position sees, itself included; None: all before it.
        qkv_bias: on query, key and value; no other linear layer has a bias.
        qk_norm: RMSNorm over each query and key head.
        tied: the output layer is the embedding.
        vocab_size: rows of the embedding that are real; Megatron pads it.
        num_experts: of every layer; None: a dense MLP.
    """

    num_layers: int
    hidden_size: int
    ffn_size: int
    num_heads: int
    num_groups: int
    head_size: int
    norm_epsilon: float
    rotary_base: int
    rope_scaling: RopeScaling | None
    window_tokens: int | None
    qkv_bias: bool
    qk_norm: bool
    tied: bool
    vocab_size: int
    max_positions: int
    num_experts: int | None
    experts_per_token: int | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a `model_type` fixes.

    Attributes:
        class_name: of transformers, for `architectures`.
        defaults: values of fields that a config may leave out, as the family's class in transformers has them.
        window_switch: whether `sliding_window` counts only where `use_sliding_window` is true.
    """

    class_name: str
    qkv_bias: bool = False
    qk_norm: bool = False
    has_experts: bool = False
    has_window: bool = False
    window_switch: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


FAMILIES: dict[str, Family] = {
    "llama": Family(class_name="LlamaForCausalLM"),
    "mistral": Family(
        class_name="MistralForCausalLM", has_window=True, defaults={"num_key_value_heads": 8, "sliding_window": 4096}
    ),
    "qwen2": Family(
        class_name="Qwen2ForCausalLM",
        qkv_bias=True,
        has_window=True,
        window_switch=True,
        defaults={"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "qwen3": Family(
        class_name="Qwen3ForCausalLM",
        qk_norm=True,
        has_window=True,
        window_switch=True,
        defaults={"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28},
    ),
    "mixtral": Family(
        class_name="MixtralForCausalLM",
        has_experts=True,
        has_window=True,
        defaults={
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
}


def family_of(architecture: Architecture) -> str:
    """The `model_type` that expresses an architecture.

    Raises:
        InputError: none does; the message names the settings that do not go together.
    """
    fitting = [name for name in FAMILIES if not misfits(architecture, name)]
    if not fitting:
        reasons = "; ".join(f"{name}: {', '.join(misfits(architecture, name))}" for name in FAMILIES)
        raise InputError(f"no Hugging Face family expresses this model ({reasons})")
    return fitting[0]


def misfits(architecture: Architecture, family_name: str) -> list[str]:
    """What a family lacks or insists on, in Megatron's words; nothing where it fits."""
    family = FAMILIES[family_name]
    checks = (
        ("--add-qkv-bias", architecture.qkv_bias, family.qkv_bias),
        ("--qk-layernorm", architecture.qk_norm, family.qk_norm),
        ("--num-experts", architecture.num_experts is not None, family.has_experts),
    )
    found = [f"{'has' if theirs else 'lacks'} {flag}" for flag, ours, theirs in checks if ours != theirs]
    if architecture.window_tokens is not None and not family.has_window:
        found.append("lacks --window-size")
    return found
