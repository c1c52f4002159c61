"""`Architecture` -> `config.json`, in the words that transformers 4 and 5 and other readers know."""

from typing import Any

from megatron_miniplm.mcore.huggingface.architecture import Architecture
from megatron_miniplm.mcore.huggingface.config_json import LLAMA3_CONSTANTS
from megatron_miniplm.mcore.huggingface.families import FAMILIES


def config_of_architecture(architecture: Architecture, family_name: str, dtype: str) -> dict[str, Any]:
    """The `config.json` of an architecture, without the ids of special tokens.

    Args:
        family_name: a key of `FAMILIES` that fits.
        dtype: `float32`, `bfloat16` or `float16`.
    """
    family = FAMILIES[family_name]
    config: dict[str, Any] = {
        "architectures": [family.class_name],
        "model_type": family_name,
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.ffn_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_groups,
        "head_dim": architecture.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": architecture.max_positions,
        "rms_norm_eps": architecture.norm_epsilon,
        "rope_theta": float(architecture.rotary_base),
        "rope_scaling": None,
        "tie_word_embeddings": architecture.tied,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if architecture.rope_scaling is not None:
        scaling = architecture.rope_scaling
        constants = LLAMA3_CONSTANTS if scaling.kind == "llama3" else {}
        config["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor, **constants}
    if family_name == "llama":
        config |= {"attention_bias": False, "mlp_bias": False}
    if family.has_window:
        config["sliding_window"] = architecture.window_tokens
    if family.window_switch:
        config |= {"use_sliding_window": architecture.window_tokens is not None, "max_window_layers": 0}
    if family.has_experts:
        config |= {"num_local_experts": architecture.num_experts, "num_experts_per_tok": architecture.experts_per_token}
    return config
