"""`config.json` of transformers 4 and 5 -> `Architecture`.

Only what changes the function that a model computes is read. A value that Megatron cannot express is refused by name:
a silently different model would score without a word.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import FAMILIES, Architecture, RopeScaling
from megatron_miniplm.mcore.huggingface.config_fields import OTHER_ROUTE, ConfigFields, shown

DOWNLOAD_AGAIN = "download it again"
_MAX_BYTES = 4 << 20
#: The most experts over all layers: each is three tensors with a name.
_MAX_EXPERTS = 1 << 18

_OFF = (None, False)
_NEUTRAL_SCALE = (1.0, None)
#: Field -> the only values that Megatron's decoder has; a field that is absent has the first. transformers reads the
#: first group. It ignores the others in our families, but whoever trained with them trained another model.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
    "is_causal": (True, None),
    # Fields of other families.
    "quantization": (None,),
    "compression_config": (None,),
    "attn_logit_softcapping": _OFF,
    "final_logit_softcapping": _OFF,
    "query_pre_attn_scalar": _OFF,
    "attention_multiplier": _OFF,
    "embedding_multiplier": _NEUTRAL_SCALE,
    "residual_multiplier": _NEUTRAL_SCALE,
    "logits_scaling": _NEUTRAL_SCALE,
    "logit_scale": _NEUTRAL_SCALE,
    "lm_head_multiplier": _NEUTRAL_SCALE,
    "scale_emb": _NEUTRAL_SCALE,
    "clip_qkv": _OFF,
    "use_qk_norm": _OFF,
    "qk_layernorm": _OFF,
    "alibi": _OFF,
    "parallel_attn": _OFF,
    "use_parallel_residual": _OFF,
    "no_rope_layers": (None, []),
    "no_rope_layer_interval": (None, 0),
    "attention_chunk_size": _OFF,
    "attn_temperature_tuning": _OFF,
    "use_bidirectional_attention": _OFF,
    "add_cross_attention": _OFF,
    "is_encoder_decoder": _OFF,
}
#: Megatron hard-codes these: core/models/common/embeddings/rotary_pos_embedding.py:92 in 0.19.2.
LLAMA3_CONSTANTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_config(path: Path) -> dict[str, Any]:
    """The raw content of a `config.json`.

    Raises:
        InputError: it is missing, or names an architecture that we do not know.
        CorruptArtifactError: it is no JSON object.
    """
    if not path.exists():
        raise InputError(
            f"{path.parent} is not a Hugging Face model: it has no {path.name}: give the directory of one, or the "
            "NAME/MODEL of one on the Hugging Face hub that was downloaded"
        )
    config: dict[str, Any] = read_json(
        path, what="configuration of a Hugging Face model", max_bytes=_MAX_BYTES, remedy=DOWNLOAD_AGAIN
    )
    found = config.get("model_type")
    if not isinstance(found, str) or found not in FAMILIES:
        raise InputError(f"{path}: model_type is {shown(found)}, supported: {', '.join(FAMILIES)}: {OTHER_ROUTE}")
    return config


def architecture_of_config(config: Mapping[str, Any], place: Path) -> Architecture:
    """What a config describes.

    Args:
        config: with a `model_type` of `FAMILIES`.
        place: of the file, for messages.

    Raises:
        InputError: a field is missing, is damaged, or has a value that Megatron cannot express.
    """
    fields = ConfigFields(config, FAMILIES[config["model_type"]], place)
    for name, accepted in _REQUIRED_VALUES.items():
        fields.require(name, config.get(name, accepted[0]), accepted)
    family = fields.family
    if not family.qkv_bias:  # Qwen2 has its biases whatever the field says
        fields.require("attention_bias", config.get("attention_bias"), (False, None))
    num_layers = fields.integer("num_hidden_layers")
    num_heads, num_groups, head_size = _heads(fields)
    num_experts, experts_per_token = _experts(fields, num_layers)
    rotary_base, rope_scaling = _rope(fields)
    return Architecture(
        num_layers=num_layers,
        hidden_size=fields.integer("hidden_size"),
        ffn_size=fields.integer("intermediate_size"),
        num_heads=num_heads,
        num_groups=num_groups,
        head_size=head_size,
        norm_epsilon=fields.number("rms_norm_eps", fields.value("rms_norm_eps"), most=1.0),
        rotary_base=rotary_base,
        rope_scaling=rope_scaling,
        window_tokens=_window(fields, num_layers),
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied=fields.boolean("tie_word_embeddings"),
        vocab_size=fields.integer("vocab_size"),
        max_positions=fields.integer("max_position_embeddings"),
        num_experts=num_experts,
        experts_per_token=experts_per_token,
    )


def _heads(fields: ConfigFields) -> tuple[int, int, int]:
    """Query heads, key/value heads, and channels of one head."""
    num_heads = fields.integer("num_attention_heads")
    num_groups = fields.integer("num_key_value_heads", default=num_heads)
    head_size = fields.integer("head_dim", default=fields.integer("hidden_size") // num_heads)
    if num_heads % num_groups:
        raise InputError(
            f"{fields.place}: num_key_value_heads {num_groups} does not divide num_attention_heads {num_heads}: "
            "download the file again"
        )
    if head_size % 2:
        raise InputError(
            f"{fields.place}: head_dim is {head_size}, expected an even number (rotary positions turn pairs of "
            "channels): download the file again"
        )
    return num_heads, num_groups, head_size


def _experts(fields: ConfigFields, num_layers: int) -> tuple[int | None, int | None]:
    """Experts of a layer, and how many of them see a token; None and None for a dense model."""
    if not fields.family.has_experts:
        return None, None
    twin = fields.config.get("num_experts")  # transformers takes it for num_local_experts
    total = fields.integer("num_local_experts")
    if twin is not None and twin != total:
        raise InputError(
            f"{fields.place}: num_experts is {shown(twin)} and num_local_experts {total}: correct the one that is wrong"
        )
    used = fields.integer("num_experts_per_tok")
    if used > total:
        raise InputError(
            f"{fields.place}: num_experts_per_tok is {used}, but there are {total} experts: download the file again"
        )
    if total * num_layers > _MAX_EXPERTS:
        raise InputError(
            f"{fields.place}: {num_layers} layers of {total} experts are more than the {_MAX_EXPERTS:,} experts that "
            "are accepted: download the file again"
        )
    return total, used


def _rope(fields: ConfigFields) -> tuple[int, RopeScaling | None]:
    """Base and scaling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4)."""
    # In this order: modeling_rope_utils.py:776 of transformers 5.23.
    parameters = fields.object("rope_scaling") or fields.object("rope_parameters")
    if any(isinstance(value, dict) for value in parameters.values()):
        fields.refuse("rope_parameters differ between layers, Megatron has one set of rotary positions for all")
    base = fields.number("rope_theta", parameters.get("rope_theta", fields.value("rope_theta")), most=1e15)
    if not base.is_integer():
        fields.refuse(f"rope_theta is {base}, Megatron's --rotary-base takes integers only")
    fields.require("partial_rotary_factor", parameters.get("partial_rotary_factor", 1.0), (1.0, None))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return int(base), None
    if kind not in ("linear", "llama3"):
        fields.refuse(f"rope type is {shown(kind)}, supported: default, linear, llama3")
    factor = fields.number(f"factor of rope type {kind}", parameters.get("factor"), most=1e6)
    if kind == "llama3":
        for name, value in LLAMA3_CONSTANTS.items():
            fields.require(f"{name} of rope type llama3", parameters.get(name), (value,))
        return int(base), RopeScaling(kind="llama3", factor=factor)
    if not factor.is_integer():
        fields.refuse(
            f"the linear rope factor is {factor}, Megatron's --rotary-seq-len-interpolation-factor takes integers only"
        )
    return int(base), RopeScaling(kind="linear", factor=factor)


def _window(fields: ConfigFields, num_layers: int) -> int | None:
    """The sliding window of all layers; None where there is none."""
    window_tokens = _window_tokens(fields)
    kinds = fields.config.get("layer_types")
    if kinds is not None:
        kinds = _layer_types(fields, kinds, num_layers)
        windowed = [kind == "sliding_attention" for kind in kinds]
    elif fields.family.window_switch and window_tokens is not None:
        first = fields.integer("max_window_layers", least=0)
        windowed = [layer >= first for layer in range(num_layers)]
    else:
        windowed = [window_tokens is not None] * num_layers
    if any(windowed) and not all(windowed):
        fields.refuse("the sliding window is used by some layers only, supported: all layers or none")
    # Only Qwen's classes read layer_types; the others have the window in every layer.
    if windowed[0] != (window_tokens is not None) and (windowed[0] or not fields.family.window_switch):
        fields.refuse(
            f"layer_types says {'sliding' if windowed[0] else 'full'}_attention but "
            f"{'there is no sliding window' if window_tokens is None else f'sliding_window is {window_tokens}'}"
        )
    return window_tokens if windowed[0] else None


def _window_tokens(fields: ConfigFields) -> int | None:
    """`sliding_window`, where the family has one and it is switched on."""
    if not fields.family.has_window:
        return None
    if fields.family.window_switch and not fields.boolean("use_sliding_window", default=False):
        return None
    if fields.config.get("sliding_window", fields.family.defaults.get("sliding_window")) is None:
        return None
    return fields.integer("sliding_window")


def _layer_types(fields: ConfigFields, kinds: Any, num_layers: int) -> list[str]:
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise InputError(
            f"{fields.place}: layer_types is {shown(kinds)}, expected an array of {num_layers} names: "
            "download the file again"
        )
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            fields.refuse(f"layer_types has {shown(kind)}, supported: full_attention, sliding_attention")
    return kinds
