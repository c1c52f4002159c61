from argparse import Namespace

import pytest

from megatron_miniplm.scoring.flops import ModelFlops

DENSE = {
    "num_layers": 2,
    "hidden_size": 8,
    "ffn_hidden_size": 20,
    "num_attention_heads": 4,
    "kv_channels": 2,
    "group_query_attention": True,
    "num_query_groups": 2,
    "swiglu": True,
    "num_experts": None,
}


def test_dense_by_hand() -> None:
    """A layer: query and output 8 x 8, key and value 8 x 4, gate, up and down 8 x 20; then 8 x 50 logits."""
    flops = ModelFlops.of(Namespace(**DENSE), 50)
    assert flops.per_token == 2 * (2 * (2 * 64 + 2 * 32 + 3 * 160) + 400)
    assert flops.per_pair == 2 * (2 + 2) * 8


def test_experts_count_as_many_as_a_token_meets() -> None:
    moe = Namespace(**{**DENSE, "num_experts": 6, "moe_router_topk": 2, "moe_ffn_hidden_size": 10})
    assert ModelFlops.of(moe, 0).per_token == 2 * 2 * (2 * 64 + 2 * 32 + 2 * 3 * 80 + 8 * 6)


def test_a_document_sees_itself_only() -> None:
    flops = ModelFlops(per_token=10, per_pair=1)
    assert flops.of_documents([3, 2]) == 50 + 6 + 3


def test_a_model_of_known_size() -> None:
    """Qwen1.5-1.8B: about twice its 1.22 G weights without embeddings, and its 0.31 G of output matrix."""
    args = Namespace(
        num_layers=24,
        hidden_size=2048,
        ffn_hidden_size=5504,
        num_attention_heads=16,
        kv_channels=128,
        group_query_attention=False,
        num_query_groups=1,
        swiglu=True,
        num_experts=None,
    )
    assert ModelFlops.of(args, 151_936).per_token == pytest.approx(2 * (1.2147e9 + 0.3112e9), rel=1e-3)
