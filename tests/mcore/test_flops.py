"""The formulas by hand, against published sizes, and against Megatron's own count."""

from argparse import Namespace

import pytest

from megatron_miniplm.mcore.flops import ModelShape

#: A layer: query and output 8 x 8, key and value 8 x 4, gate, up and down 8 x 20; then 8 x 50 logits.
TINY = {
    "num_layers": 2,
    "hidden_size": 8,
    "ffn_hidden_size": 20,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "vocab_size": 50,
}
LAYER_WEIGHTS = 2 * 64 + 2 * 32 + 3 * 160


def test_forward_by_hand() -> None:
    shape = ModelShape(**TINY)
    weights = 2 * (2 * LAYER_WEIGHTS + 400)
    # Of 3 tokens: 1 + 2 + 3 pairs, two products of 8 channels in each of 2 layers, two operations each.
    assert shape.forward_flops([3]) == 3 * weights + 6 * 2 * 2 * 2 * 8
    assert shape.forward_flops([3, 2]) == 5 * weights + (6 + 3) * 64
    assert shape.forward_flops([]) == shape.forward_flops([0]) == 0
    assert shape.forward_flops_per_token(3) == weights + 2 * 64


def test_training_is_three_passes_and_recomputation_a_fourth_but_for_the_logits() -> None:
    shape = ModelShape(**TINY)
    forward = shape.forward_flops_per_token(5)
    assert shape.training_flops_per_token(5) == 3 * forward
    assert shape.training_flops_per_token(5, recompute=True) == 4 * forward - 2 * 400


def test_variants_by_hand() -> None:
    plain = ModelShape(**TINY)
    moe = ModelShape(**{**TINY, "ffn_hidden_size": 10}, num_experts=6, experts_per_token=2)
    assert moe.layers_flops_per_token == 2 * 2 * (2 * 64 + 2 * 32 + 2 * 3 * 80 + 8 * 6)
    assert moe.num_parameters - plain.num_parameters == 2 * (6 * 3 * 80 + 8 * 6 - 480)
    assert ModelShape(**TINY, swiglu=False).layers_flops_per_token == 2 * 2 * (2 * 64 + 2 * 32 + 2 * 160)
    assert ModelShape(**{**TINY, "num_query_groups": None}).layers_flops_per_token == 2 * 2 * (4 * 64 + 480)
    assert ModelShape(**TINY, kv_channels=4).attention_flops(1) == 2 * plain.attention_flops(1)
    # A window of 2: the third and fourth token see two tokens each.
    assert ModelShape(**TINY, window_tokens=2).attention_flops(4) == (1 + 2 + 2 + 2) * 64
    # Tied or not, the logits cost the same.
    assert ModelShape(**TINY, tied=False).forward_flops([3]) == plain.forward_flops([3])
    assert ModelShape(**TINY, tied=False).num_parameters == plain.num_parameters + 400


@pytest.mark.parametrize(
    ("shape", "num_parameters"),
    [
        # Hugging Face model cards and safetensors headers: Qwen1.5-1.8B, Llama-3.2-1B, Mixtral-8x7B, GPT-2.
        (
            ModelShape(
                num_layers=24,
                hidden_size=2048,
                ffn_hidden_size=5504,
                num_attention_heads=16,
                vocab_size=151_936,
                tied=False,
                qkv_bias=True,
            ),
            1_836_828_672,
        ),
        (
            ModelShape(
                num_layers=16,
                hidden_size=2048,
                ffn_hidden_size=8192,
                num_attention_heads=32,
                num_query_groups=8,
                vocab_size=128_256,
            ),
            1_235_814_400,
        ),
        (
            ModelShape(
                num_layers=32,
                hidden_size=4096,
                ffn_hidden_size=14_336,
                num_attention_heads=32,
                num_query_groups=8,
                vocab_size=32_000,
                tied=False,
                num_experts=8,
                experts_per_token=2,
            ),
            46_702_792_704,
        ),
        (
            ModelShape(
                num_layers=12,
                hidden_size=768,
                ffn_hidden_size=3072,
                num_attention_heads=12,
                vocab_size=50_257,
                swiglu=False,
                linear_bias=True,
                layer_norm=True,
                learned_positions=1024,
            ),
            124_439_808,
        ),
    ],
    ids=["Qwen1.5-1.8B", "Llama-3.2-1B", "Mixtral-8x7B", "GPT-2"],
)
def test_published_numbers_of_parameters(shape: ModelShape, num_parameters: int) -> None:
    assert shape.num_parameters == num_parameters


def test_megatron_args_and_a_hugging_face_config_give_the_same_shape() -> None:
    config = {
        "model_type": "qwen3",
        "hidden_size": 8,
        "intermediate_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "vocab_size": 50,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
    }
    args = Namespace(
        num_layers=2,
        hidden_size=8,
        ffn_hidden_size=20,
        num_attention_heads=4,
        group_query_attention=True,
        num_query_groups=2,
        kv_channels=6,
        padded_vocab_size=128,
        swiglu=True,
        num_experts=None,
        moe_router_topk=2,
        untie_embeddings_and_output_weights=True,
        normalization="RMSNorm",
        qk_layernorm=True,
        window_size=None,
    )
    assert ModelShape.from_megatron_args(args, 50) == ModelShape.from_huggingface(config)
    assert ModelShape.from_megatron_args(args).vocab_size == 128
    args.group_query_attention = False
    assert ModelShape.from_megatron_args(args).num_query_groups is None
    args.num_experts, args.moe_ffn_hidden_size, args.window_size = 4, 12, (15, 0)
    moe = ModelShape.from_megatron_args(args)
    assert (moe.ffn_hidden_size, moe.num_experts, moe.experts_per_token, moe.window_tokens) == (12, 4, 2, 16)
