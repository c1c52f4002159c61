"""`config.json` of transformers 4 and 5 -> `Architecture`, and back.

Only what changes the function that a model computes is read. A value that Megatron cannot express is refused by name:
a silently different model would score without a word.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import Architecture, RopeScaling


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
#: Defaults that all families share; `hidden_size` and the like have none, a config without them is no config.
_SHARED_DEFAULTS = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}

#: Field -> the only values that Megatron's decoder has; a field that is absent has the first.
_REQUIRED_VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (1.0, None),
    "quantization_config": (None,),
}
#: Megatron hard-codes these: core/models/common/embeddings/rotary_pos_embedding.py:92 in 0.19.2.
_LLAMA3_CONSTANTS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_config(path: Path) -> dict[str, Any]:
    """The raw content of a `config.json`.

    Raises:
        InputError: it is missing, is no JSON object, or names an architecture that we do not know.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path.parent} is not a Hugging Face model: it has no {path.name}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object: download it again")
    if config.get("model_type") not in FAMILIES:
        raise InputError(f"{path}: model_type is {config.get('model_type')!r}, supported: {', '.join(FAMILIES)}")
    return config


def architecture_of_config(config: Mapping[str, Any], place: Path) -> Architecture:
    """What a config describes.

    Args:
        config: with a `model_type` of `FAMILIES`.
        place: of the file, for messages.

    Raises:
        InputError: a field is missing, or has a value that Megatron cannot express.
    """
    reader = _ConfigReader(config, FAMILIES[config["model_type"]], place)
    for name, accepted in _REQUIRED_VALUES.items():
        reader.require(name, config.get(name, accepted[0]), accepted)
    family = reader.family
    num_heads = reader.integer("num_attention_heads")
    hidden_size = reader.integer("hidden_size")
    rotary_base, rope_scaling = _rope(reader)
    return Architecture(
        num_layers=reader.integer("num_hidden_layers"),
        hidden_size=hidden_size,
        ffn_size=reader.integer("intermediate_size"),
        num_heads=num_heads,
        num_groups=reader.integer("num_key_value_heads", default=num_heads),
        head_size=reader.integer("head_dim", default=hidden_size // num_heads),
        norm_epsilon=float(reader.value("rms_norm_eps")),
        rotary_base=rotary_base,
        rope_scaling=rope_scaling,
        window_tokens=_window(reader) if family.has_window else None,
        qkv_bias=family.qkv_bias,
        qk_norm=family.qk_norm,
        tied=bool(reader.value("tie_word_embeddings")),
        vocab_size=reader.integer("vocab_size"),
        max_positions=reader.integer("max_position_embeddings"),
        num_experts=reader.integer("num_local_experts") if family.has_experts else None,
        experts_per_token=reader.integer("num_experts_per_tok") if family.has_experts else None,
    )


@dataclass(frozen=True)
class _ConfigReader:
    config: Mapping[str, Any]
    family: Family
    place: Path

    def value(self, name: str) -> Any:
        """A field, or the family's default for it."""
        defaults = {**_SHARED_DEFAULTS, **self.family.defaults}
        if name not in self.config and name not in defaults:
            raise InputError(f"{self.place}: {name} is missing")
        return self.config.get(name, defaults.get(name))

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive integer; `default` where it is null or absent and the family has no default either."""
        found = self.config.get(name, self.family.defaults.get(name))
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise InputError(f"{self.place}: {name} is {found!r}, expected a positive integer")
        return found

    def require(self, name: str, found: Any, accepted: tuple[Any, ...]) -> None:
        if found not in accepted:
            raise InputError(f"{self.place}: {name} is {found!r}, Megatron's decoder has {accepted[0]!r} only")


def _rope(reader: _ConfigReader) -> tuple[int, RopeScaling | None]:
    """Base and scaling: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (4)."""
    parameters = reader.config.get("rope_parameters") or {}
    scaling = reader.config.get("rope_scaling") or parameters
    base = float(parameters.get("rope_theta", reader.value("rope_theta")))
    if not base.is_integer():
        raise InputError(f"{reader.place}: rope_theta is {base}, Megatron's --rotary-base takes integers only")
    reader.require("partial_rotary_factor", parameters.get("partial_rotary_factor", 1.0), (1.0, None))
    if any(isinstance(value, dict) for value in scaling.values()):
        raise InputError(f"{reader.place}: rope_parameters differ between layers, Megatron has one rope for all")
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return int(base), None
    if kind == "linear":
        if not float(scaling["factor"]).is_integer():
            raise InputError(
                f"{reader.place}: the linear rope factor is {scaling['factor']}, Megatron's "
                "--rotary-seq-len-interpolation-factor takes integers only"
            )
        return int(base), RopeScaling(kind="linear", factor=float(scaling["factor"]))
    if kind == "llama3":
        for name, value in _LLAMA3_CONSTANTS.items():
            reader.require(f"{name} of rope type llama3", scaling.get(name), (value,))
        return int(base), RopeScaling(kind="llama3", factor=float(scaling["factor"]))
    raise InputError(f"{reader.place}: rope type is {kind!r}, supported: default, linear, llama3")


def _window(reader: _ConfigReader) -> int | None:
    """The sliding window of all layers; None where there is none."""
    if reader.family.window_switch and not reader.config.get("use_sliding_window", False):
        return None
    if reader.config.get("sliding_window", reader.family.defaults.get("sliding_window")) is None:
        return None
    if reader.family.window_switch:
        num_layers, first = reader.integer("num_hidden_layers"), reader.value("max_window_layers")
        windowed = [layer >= first for layer in range(num_layers)]
        if reader.config.get("layer_types"):
            windowed = [kind == "sliding_attention" for kind in reader.config["layer_types"]]
        if not any(windowed):
            return None
        if not all(windowed):
            raise InputError(
                f"{reader.place}: use_sliding_window is true for some layers only, supported: all layers or none"
            )
    return reader.integer("sliding_window")


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


def config_of_architecture(architecture: Architecture, family_name: str, dtype: str) -> dict[str, Any]:
    """The `config.json` of an architecture, in the words that transformers 4 and 5 and other readers know.

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
        constants = _LLAMA3_CONSTANTS if scaling.kind == "llama3" else {}
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
