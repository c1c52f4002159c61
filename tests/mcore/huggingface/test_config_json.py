"""`config.json` against transformers' own classes, and every value that a file from elsewhere may hold."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig

from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.architecture import FAMILIES, Architecture
from megatron_miniplm.mcore.huggingface.config_json import architecture_of_config
from megatron_miniplm.mcore.huggingface.mapping import tensor_shapes

SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
#: Numbers that the families' default number of key/value heads divides.
NUMBERS_THAT_DIVIDE = {"hidden_size": 64, "num_attention_heads": 32}
PLACE = Path("model/config.json")


def read(config: dict[str, Any]) -> Architecture:
    return architecture_of_config(config, PLACE)


@pytest.mark.parametrize("family", FAMILIES)
def test_absent_fields_have_transformers_defaults(family: str, tmp_path: Path) -> None:
    """The class of transformers completes the same file; what it says in full must be the same architecture."""
    config = {**SMALL, **NUMBERS_THAT_DIVIDE, "model_type": family}
    completed = AutoConfig.for_model(**config).to_dict()
    assert {"rms_norm_eps", "tie_word_embeddings", "num_key_value_heads", "rope_parameters"} <= completed.keys()
    assert read(config) == read({**completed, "head_dim": completed.get("head_dim")})


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 5e5},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e5}},
        {
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 7e5},
        },
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    ],
)
def test_of_two_ropes_the_one_that_transformers_takes(config: dict[str, Any]) -> None:
    theirs = AutoConfig.for_model(**SMALL, **config).rope_parameters
    ours = read({**SMALL, **config})
    assert ours.rotary_base == theirs["rope_theta"]
    assert (ours.rope_scaling.factor if ours.rope_scaling else None) == theirs.get("factor")


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "mixtral"])
@pytest.mark.parametrize("window", [{}, {"sliding_window": None}, {"sliding_window": 7}])
@pytest.mark.parametrize("switch", [{}, {"use_sliding_window": True}, {"use_sliding_window": False}])
@pytest.mark.parametrize("first", [{}, {"max_window_layers": 0}, {"max_window_layers": 4}])
def test_the_window_is_the_one_that_transformers_uses(
    family: str, window: dict[str, Any], switch: dict[str, Any], first: dict[str, Any]
) -> None:
    config = {**SMALL, **NUMBERS_THAT_DIVIDE, "model_type": family, **window, **switch, **first}
    theirs = AutoConfig.for_model(**config)
    kinds = getattr(theirs, "layer_types", None) or ["sliding_attention"]
    expected = theirs.sliding_window if "sliding_attention" in kinds else None
    assert read(config).window_tokens == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantization_config"),
        ({"quantization": {"bits": 4}}, "quantization"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"logits_scaling": 8.0}, "logits_scaling"),
        ({"logit_scale": 0.0625}, "logit_scale"),
        ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
        ({"residual_multiplier": 0.22}, "residual_multiplier"),
        ({"attention_multiplier": 0.0078125}, "attention_multiplier"),
        ({"query_pre_attn_scalar": 224}, "query_pre_attn_scalar"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "dynamic"),
        ({"rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, "longrope"),
        ({"rope_scaling": {"rope_type": "mrope", "mrope_section": [2, 2]}}, "mrope"),
        ({"rope_scaling": {"full_attention": {"rope_type": "default"}}}, "differ between layers"),
        ({"no_rope_layers": [1, 1, 1, 0]}, "no_rope_layers"),
        ({"is_causal": False}, "is_causal"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ({"hidden_act": "relu2"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
        ({"layer_types": ["full_attention", "chunked_attention"] * 2}, "chunked_attention"),
        ({"layer_types": ["sliding_attention"] * 4}, "there is no sliding window"),
        (
            {"model_type": "mistral", "sliding_window": 7, "layer_types": ["full_attention"] * 4},
            "sliding_window is 7",
        ),
        (
            {"model_type": "mistral", "sliding_window": 7, "layer_types": ["full_attention", "sliding_attention"] * 2},
            "some layers only",
        ),
        ({"model_type": "gemma2"}, "gemma2"),
    ],
)
def test_what_changes_the_function_is_refused_by_name_with_a_remedy(
    tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL, "num_key_value_heads": 8, **changes}))
    with pytest.raises(MiniPLMError) as raised:
        HuggingFaceModel.open(tmp_path)
    message = str(raised.value)
    assert message.startswith(str(path))
    assert named in message
    assert message.endswith(
        "convert the model to a Megatron checkpoint with megatron-bridge, and give that with --load"
    )


@pytest.mark.parametrize(
    "neutral",
    [
        {"attn_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1, "attention_multiplier": None},
        {"partial_rotary_factor": 1, "attention_bias": False, "layer_types": ["full_attention"] * 4},
        {"rope_scaling": None, "quantization_config": None, "sliding_window": 7},
        {"model_type": "qwen2", "attention_bias": True, "num_key_value_heads": 8},
    ],
)
def test_neutral_values_are_accepted(neutral: dict[str, Any]) -> None:
    expected = read({**SMALL, "model_type": neutral.get("model_type", "llama"), "num_key_value_heads": 8})
    assert read({**SMALL, "num_key_value_heads": 8, **neutral}) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 2147483648},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 4.0},
        {"num_hidden_layers": "4"},
        {"num_hidden_layers": True},
        {"vocab_size": 1 << 40},
        {"hidden_size": 1 << 30},
        {"num_attention_heads": [8]},
        {"num_key_value_heads": 3},
        {"head_dim": 5},
        {"hidden_size": 4},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": "1e-6"},
        {"rms_norm_eps": None},
        {"rope_theta": -1e4},
        {"rope_theta": {}},
        {"rope_theta": 1e300},
        {"rope_scaling": "yarn"},
        {"rope_scaling": {"type": "linear"}},
        {"rope_scaling": {"type": "linear", "factor": -2}},
        {"rope_scaling": {"type": ["linear"]}},
        {"tie_word_embeddings": "false"},
        {"tie_word_embeddings": None},
        {"layer_types": "full_attention"},
        {"layer_types": ["full_attention"]},
        {"model_type": {}},
        {"model_type": ["llama"]},
        {"model_type": None},
        {"model_type": "mixtral", "num_key_value_heads": 8, "num_local_experts": 1 << 13, "num_hidden_layers": 1 << 10},
        {"model_type": "mixtral", "num_key_value_heads": 8, "num_local_experts": 2, "num_experts_per_tok": 3},
        {"model_type": "mixtral", "num_key_value_heads": 8, "num_experts": 4},
        {"model_type": "qwen2", "num_key_value_heads": 8, "use_sliding_window": "yes"},
        {"model_type": "qwen2", "num_key_value_heads": 8, "use_sliding_window": True, "max_window_layers": -1},
    ],
)
def test_damaged_values_are_refused_at_once(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**SMALL, **changes}))
    started = time.process_time()
    with pytest.raises(MiniPLMError) as raised:
        HuggingFaceModel.open(tmp_path).check_tensors()
    assert time.process_time() - started < 1
    assert str(raised.value).startswith(f"{path}: ")
    assert any(name in str(raised.value) for name in [*changes, "num_experts_per_tok", "experts", "head_dim", "rope"])


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b"\xff{}", b"[" * 100_000, b'{"a":' * 100_000, b'{"vocab_size": 1%s}' % (b"0" * 5000)],
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(MiniPLMError) as raised:
        HuggingFaceModel.open(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'config.json'} is not a valid")
    assert "download it again" in str(raised.value)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 70),
        st.sampled_from([2**31, 2**63, -(2**63), 1e-6, 1e300, 0.5, -1.0]),
        st.sampled_from(["silu", "linear", "llama3", "full_attention", "sliding_attention", "default", ""]),
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(["rope_theta", "factor", "rope_type", "type"]), st.text(max_size=2)),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [
        *SMALL,
        *dict.fromkeys(name for family in FAMILIES.values() for name in family.defaults),
        *("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "num_experts"),
        *("use_sliding_window", "layer_types", "head_dim", "hidden_act", "attention_bias", "partial_rotary_factor"),
    ]
)


@fuzz("config", 60)
@given(family=st.sampled_from(sorted(FAMILIES)), changes=st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3))
def test_fuzz_configs(tmp_path_factory: pytest.TempPathFactory, family: str, changes: dict[str, Any]) -> None:
    """An architecture of whole, bounded numbers, or one of our errors that names the file."""
    directory = tmp_path_factory.getbasetemp()
    path = directory / "config.json"
    path.write_text(json.dumps({**SMALL, **NUMBERS_THAT_DIVIDE, "model_type": family, **changes}))
    started = time.process_time()
    try:
        architecture = HuggingFaceModel.open(directory).architecture
    except MiniPLMError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert len(str(error)) < 800  # noqa: PT017
    else:
        numbers = [value for value in dataclasses.astuple(architecture) if type(value) is int]
        assert min(numbers) >= 1
        assert architecture.num_heads % architecture.num_groups == 0
        assert architecture.head_size % 2 == 0
        if architecture.num_layers * (architecture.num_experts or 1) < 10_000:
            tensor_shapes(architecture)
    assert time.process_time() - started < 2
