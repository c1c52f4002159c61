"""Floating point operations of a forward pass, and what the device could do at most."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

#: Dense bfloat16 peaks in operations a second, by a part of the device's name; from NVIDIA's data sheets (SXM).
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "H800": 989.4e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}


@dataclass(frozen=True, kw_only=True)
class ModelFlops:
    """Of the whole model, for tokens that are fed to it; padding is not counted, and elementwise work is not either.

    Attributes:
        per_token: of all matrix products with weights; experts that a token is not sent to are not counted.
        per_pair: of attention, for each pair of a token and one that it sees.
    """

    per_token: float
    per_pair: float

    @classmethod
    def of(cls, args: argparse.Namespace, vocab_size: int) -> Self:
        """From Megatron's args of a transformer whose layers are alike."""
        attention_size = args.num_attention_heads * args.kv_channels
        groups = args.num_query_groups if args.group_query_attention else args.num_attention_heads
        attention = args.hidden_size * (2 * attention_size + 2 * groups * args.kv_channels)
        matrices = 3 if args.swiglu else 2
        if args.num_experts:
            ffn_size = args.moe_ffn_hidden_size or args.ffn_hidden_size
            mlp = args.hidden_size * (args.moe_router_topk * matrices * ffn_size + args.num_experts)
        else:
            mlp = args.hidden_size * matrices * args.ffn_hidden_size
        return cls(
            per_token=2.0 * (args.num_layers * (attention + mlp) + args.hidden_size * vocab_size),
            per_pair=4.0 * args.num_layers * attention_size,
        )

    def of_documents(self, lengths: Sequence[int]) -> float:
        """Of documents of these lengths, each causal in itself."""
        tokens, pairs = sum(lengths), sum(length * (length + 1) // 2 for length in lengths)
        return self.per_token * tokens + self.per_pair * pairs


def peak_flops() -> float | None:
    """Of this rank's device; None where it is not known (as for a CPU)."""
    import torch

    if not torch.cuda.is_initialized():
        return None
    name = torch.cuda.get_device_name()
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
