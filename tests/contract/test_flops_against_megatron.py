"""Our formula of a training step beside Megatron's own."""

from argparse import Namespace

import pytest

training = pytest.importorskip("megatron.training.training")

from megatron_miniplm.mcore.flops import ModelShape  # noqa: E402

ARGS = {
    "num_layers": 24,
    "hidden_size": 1024,
    "ffn_hidden_size": 2816,
    "num_attention_heads": 16,
    "group_query_attention": True,
    "num_query_groups": 4,
    "kv_channels": 96,
    "swiglu": True,
    "padded_vocab_size": 151_936,
    "seq_length": 1024,
    "num_experts": None,
    "untie_embeddings_and_output_weights": True,
    "hybrid_layer_pattern": None,
    "multi_latent_attention": False,
    "attention_output_gate": False,
    "experimental_attention_variant": None,
    "linear_attention_freq": None,
    "mtp_num_layers": None,
    "moe_ffn_hidden_size": None,
    "moe_latent_size": None,
    "moe_shared_expert_intermediate_size": None,
}


@pytest.mark.parametrize("others", [{}, {"swiglu": False}, {"group_query_attention": False}, {"seq_length": 8192}])
def test_equal_but_for_the_diagonal(others: dict[str, object]) -> None:
    """Megatron takes half of s squared where a causal token sees (s + 1) / 2 on average."""
    args = Namespace(**{**ARGS, **others})
    batch_rows, length = 8, args.seq_length
    ours = batch_rows * length * ModelShape.from_megatron_args(args).training_flops_per_token(length)
    diagonal = 3 * batch_rows * length * 4 * args.num_layers * args.num_attention_heads * args.kv_channels / 2
    assert training.num_floating_point_operations(args, batch_rows) == pytest.approx(ours - diagonal, rel=1e-12)
