"""The shape of a decoder, and from it parameters and floating point operations: the one place for these formulas.

Matrix products are counted, two operations for each multiplication and addition; norms, softmax and other elementwise
work are not. A training step is three forward passes: the product itself, and the gradients of both its operands. Up to
the output layer and attention that is the 2 N and 6 N operations a token of Kaplan et al. 2020 (arXiv 2001.08361,
section 2.1). Where we differ:

- N leaves out the embedding, which is looked up, but not the output layer, tied or not. Kaplan et al. leave out both.
- Attention is causal: a token meets itself and what comes before it, half of the square that Narayanan et al. 2021
  (arXiv 2104.04473, appendix) count. `num_floating_point_operations` of Megatron-Core 0.19 halves too.
- Of experts, those that a token is sent to count, and the router. Megatron's function leaves out the router.
- Recomputed activations count where they are asked for: a fourth forward pass through the layers, but not through the
  output layer, which `--recompute-granularity full` does not repeat either.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

#: Dense bfloat16 peaks in operations a second, by a part of the device's name; from NVIDIA's data sheets (SXM).
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "H800": 989.4e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}

#: Gradients of the weights and of what goes in: two more products for each one of the forward pass.
TRAINING_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides the cost of a decoder whose layers are alike; names are Megatron's flags.

    Attributes:
        ffn_hidden_size: width of the MLP, or of one expert.
        vocab_size: rows of the output layer, with padding where that is computed (training) and without where it is not
            (scoring).
        num_query_groups: key and value heads; None: as many as query heads.
        kv_channels: channels of a head; None: `hidden_size / num_attention_heads`.
        tied: the output layer is the embedding.
        window_tokens: how many tokens a position sees, itself included; None: all before it.
        qkv_bias, linear_bias: biases on query, key and value, or on every linear layer of a decoder layer.
        qk_norm: a norm over the channels of query and key heads.
        layer_norm: norms have a bias, too.
        learned_positions: rows of a table of learned positions, 0 where positions are rotary.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    vocab_size: int
    num_query_groups: int | None = None
    kv_channels: int | None = None
    swiglu: bool = True
    tied: bool = True
    num_experts: int | None = None
    experts_per_token: int = 1
    window_tokens: int | None = None
    qkv_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    layer_norm: bool = False
    learned_positions: int = 0

    @classmethod
    def from_megatron_args(cls, args: argparse.Namespace, vocab_size: int | None = None) -> Self:
        """From Megatron's validated args, or those that a checkpoint was saved with.

        Layers of other kinds (Mamba, multi-latent attention, shared experts) are taken for plain ones.

        Args:
            vocab_size: None: the padded one of the args.
        """
        setting = vars(args).get
        num_experts = setting("num_experts")
        window_size = setting("window_size")
        return cls(
            num_layers=args.num_layers,
            hidden_size=args.hidden_size,
            ffn_hidden_size=(num_experts and setting("moe_ffn_hidden_size")) or args.ffn_hidden_size,
            num_attention_heads=args.num_attention_heads,
            vocab_size=args.padded_vocab_size if vocab_size is None else vocab_size,
            num_query_groups=args.num_query_groups if setting("group_query_attention") else None,
            kv_channels=setting("kv_channels"),
            swiglu=args.swiglu,
            tied=not setting("untie_embeddings_and_output_weights", False),
            num_experts=num_experts,
            experts_per_token=setting("moe_router_topk", 1) if num_experts else 1,
            window_tokens=window_size[0] + 1 if window_size and window_size[0] >= 0 else None,
            qkv_bias=setting("add_qkv_bias", False),
            linear_bias=setting("add_bias_linear", False),
            qk_norm=setting("qk_layernorm", False),
            layer_norm=setting("normalization", "RMSNorm") == "LayerNorm",
            learned_positions=args.max_position_embeddings
            if setting("position_embedding_type") == "learned_absolute"
            else 0,
        )

    @classmethod
    def from_huggingface(cls, config: Mapping[str, Any], place: Path = Path("config.json")) -> Self:
        """From the content of a `config.json`, as `mcore.huggingface.config_json.read_config` returns it.

        Raises:
            InputError: a field is missing, or has a value that Megatron cannot express.
        """
        from megatron_miniplm.mcore.huggingface.config_json import architecture_of_config

        found = architecture_of_config(config, place)
        return cls(
            num_layers=found.num_layers,
            hidden_size=found.hidden_size,
            ffn_hidden_size=found.ffn_size,
            num_attention_heads=found.num_heads,
            vocab_size=found.vocab_size,
            num_query_groups=found.num_groups,
            kv_channels=found.head_size,
            tied=found.tied,
            num_experts=found.num_experts,
            experts_per_token=found.experts_per_token or 1,
            window_tokens=found.window_tokens,
            qkv_bias=found.qkv_bias,
            qk_norm=found.qk_norm,
        )

    @property
    def attention_size(self) -> int:
        """Width of all query heads together."""
        return self.num_attention_heads * self._head_size

    @property
    def num_parameters(self) -> int:
        """All, those of experts that a token does not meet included."""
        key_value_size = self._num_groups * self._head_size
        mlp_width = self.ffn_hidden_size * (2 if self.swiglu else 1)
        mlp = self.hidden_size * (mlp_width + self.ffn_hidden_size)
        if self.linear_bias:
            mlp += mlp_width + self.hidden_size
        norm = self.hidden_size * (2 if self.layer_norm else 1)
        layer = self._attention_weights + (self.num_experts or 1) * mlp + self._router_weights + 2 * norm
        if self.qkv_bias or self.linear_bias:
            layer += self.attention_size + 2 * key_value_size
        if self.linear_bias:
            layer += self.hidden_size
        if self.qk_norm:
            layer += 2 * self._head_size * (2 if self.layer_norm else 1)
        return self.num_layers * layer + norm + self.num_embedding_parameters

    @property
    def num_embedding_parameters(self) -> int:
        """Of the embedding, learned positions, and the output layer where it is a matrix of its own."""
        return self.hidden_size * (self.vocab_size * (1 if self.tied else 2) + self.learned_positions)

    @property
    def layers_flops_per_token(self) -> float:
        """Forward, of all products with weights in the layers."""
        mlp = self.experts_per_token * self.hidden_size * self.ffn_hidden_size * (3 if self.swiglu else 2)
        return 2.0 * self.num_layers * (self._attention_weights + mlp + self._router_weights)

    @property
    def output_flops_per_token(self) -> float:
        """Forward, of the logits."""
        return 2.0 * self.hidden_size * self.vocab_size

    def attention_flops(self, length: int) -> float:
        """Forward, of a document of so many tokens: query times key, and probability times value, for each pair."""
        seen = length if self.window_tokens is None else min(length, self.window_tokens)
        pairs = seen * (seen + 1) / 2 + (length - seen) * seen
        return 4.0 * self.num_layers * self.attention_size * pairs

    def forward_flops(self, lengths: Iterable[int]) -> float:
        """Of documents of so many tokens each, causal in themselves; tokens are those that are fed to the model."""
        num_tokens, attention = 0, 0.0
        for length in lengths:
            num_tokens += length
            attention += self.attention_flops(length)
        return num_tokens * (self.layers_flops_per_token + self.output_flops_per_token) + attention

    def forward_flops_per_token(self, seq_length: int) -> float:
        """Mean over the tokens of a row of `seq_length` that sees all of itself, as Megatron's training rows do."""
        return self.forward_flops([seq_length]) / seq_length

    def training_flops_per_token(self, seq_length: int, *, recompute: bool = False) -> float:
        """Forward and backward.

        Args:
            recompute: with `--recompute-granularity full`.
        """
        forward = self.forward_flops_per_token(seq_length)
        again = forward - self.output_flops_per_token if recompute else 0.0
        return TRAINING_PASSES * forward + again

    @property
    def _head_size(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def _num_groups(self) -> int:
        return self.num_query_groups or self.num_attention_heads

    @property
    def _attention_weights(self) -> int:
        return 2 * self.hidden_size * (self.attention_size + self._num_groups * self._head_size)

    @property
    def _router_weights(self) -> int:
        return self.hidden_size * (self.num_experts or 0)


def peak_flops() -> float | None:
    """Of this rank's device in a second; None where it is not known (as for a CPU)."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
