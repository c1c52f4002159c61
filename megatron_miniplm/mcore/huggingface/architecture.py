"""The decoders that both Megatron and our Hugging Face families express, in neither side's words."""

from dataclasses import dataclass
from typing import Literal


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
