"""A Hugging Face directory without Megatron: flags, fingerprint, and every way in which it can be broken."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.model import locate


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    """A copy of the sharded model, to be broken."""
    for path in (saved / "llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises((InputError, CorruptArtifactError)) as raised:
        action()
    return str(raised.value)


def test_transformers_4_configs(llama: Path) -> None:
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
    scaling["original_max_position_embeddings"] = 8192
    change_config(llama, rope_parameters=None, rope_theta=500000.0, rope_scaling=scaling, dtype=None)
    model = HuggingFaceModel.open(llama)
    assert model.architecture.rotary_base == 500_000
    assert model.architecture.rope_scaling is not None
    assert model.architecture.rope_scaling.factor == 8.0


def test_the_precision_is_that_of_the_weights(
    saved: Path, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the config says; a disagreement is said, and norms in float32 do not decide."""
    change_config(llama, torch_dtype="bfloat16", dtype=None)
    assert HuggingFaceModel.open(llama).precision_flags([]) == []
    assert "names the dtype 'bfloat16', but the weights are stored in float32" in capsys.readouterr().out
    half = tmp_path / "half"
    half.mkdir()
    tensors = {
        name: tensor if "norm" in name else tensor.to(torch.bfloat16)
        for name, tensor in load_file(saved / "llama-tied" / "model.safetensors").items()
    }
    save_file(tensors, half / "model.safetensors")
    (half / "config.json").write_bytes((saved / "llama-tied" / "config.json").read_bytes())
    for named in ("bfloat16", {}, 3, None):
        change_config(half, dtype=named)
        assert HuggingFaceModel.open(half).precision_flags([]) == ["--bf16"]
        assert HuggingFaceModel.open(half).precision_flags(["--fp16"]) == []
    assert capsys.readouterr().out == ""


def test_weights_in_another_precision_are_refused(saved: Path, tmp_path: Path) -> None:
    tensors = load_file(saved / "llama-tied" / "model.safetensors")
    save_file(
        {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_bytes((saved / "llama-tied" / "config.json").read_bytes())
    model = HuggingFaceModel.open(tmp_path)
    assert "is stored in F8_E4M3, supported: F32, BF16, F16" in refusal(model.check_tensors)
    assert "are stored in F8_E4M3" in refusal(lambda: model.dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', supported: llama, mistral, qwen2, qwen3, mixtral"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', Megatron's decoder has 'silu' only"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type is 'dynamic', supported: default, linear"),
        ({"rope_scaling": {"type": "linear", "factor": 2.5}}, "the linear rope factor is 2.5"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 2.0}},
            "low_freq_factor of rope type llama3 is 2.0, Megatron's decoder has 1.0 only",
        ),
        ({"hidden_size": None}, "hidden_size is None, expected a positive integer"),
        ({"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2}, "by some layers only"),
    ],
)
def test_what_megatron_cannot_express_is_refused(llama: Path, changes: dict[str, Any], message: str) -> None:
    change_config(llama, **changes)
    assert message in refusal(lambda: HuggingFaceModel.open(llama))


def test_no_model_at_all(tmp_path: Path, llama: Path) -> None:
    assert "is not a Hugging Face model: it has no config.json" in refusal(
        lambda: HuggingFaceModel.open(tmp_path / "nothing")
    )
    for path in llama.glob("*.safetensors*"):
        path.unlink()
    assert "has neither model.safetensors nor model.safetensors.index.json" in refusal(
        HuggingFaceModel.open(llama).check_tensors
    )


def test_missing_and_truncated_shards(llama: Path) -> None:
    shard = sorted(llama.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    message = refusal(HuggingFaceModel.open(llama).check_tensors)
    assert message == f"{shard} is truncated: {len(content) - 1:,} bytes of {len(content):,}: copy or download it again"
    for damaged, reason in (
        (content[:100], "is truncated within its header, at 100 bytes"),
        (b"", "is truncated within its header, at 0 bytes"),
        (struct.pack("<Q", 4) + b"{]}}", "is not a valid safetensors header"),
    ):
        shard.write_bytes(damaged)
        assert f"{shard} {reason}" in refusal(HuggingFaceModel.open(llama).check_tensors)
    shard.unlink()
    assert f"{shard} is missing, but model.safetensors.index.json names it" in refusal(
        HuggingFaceModel.open(llama).check_tensors
    )


def test_tensors_that_do_not_fit_the_config(saved: Path, llama: Path) -> None:
    change_config(llama, num_hidden_layers=5)
    assert "has no tensor model.layers.4." in refusal(HuggingFaceModel.open(llama).check_tensors)
    change_config(llama, num_hidden_layers=3)
    assert "holds model.layers.3." in refusal(HuggingFaceModel.open(llama).check_tensors)
    change_config(llama, num_hidden_layers=4, intermediate_size=50)
    assert "mlp.gate_proj.weight has shape (48, 32), config.json says (50, 32)" in refusal(
        HuggingFaceModel.open(llama).check_tensors
    )


def test_computed_and_tied_tensors_are_no_error(saved: Path, tmp_path: Path) -> None:
    source = saved / "llama-tied"
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    HuggingFaceModel.open(tmp_path).check_tensors()


def test_the_fingerprint_knows_weights_and_config(llama: Path) -> None:
    first = HuggingFaceModel.open(llama).fingerprint()
    (llama / "tokenizer.json").write_text("{}")
    assert HuggingFaceModel.open(llama).fingerprint() == first
    change_config(llama, rms_norm_eps=1e-4)
    second = HuggingFaceModel.open(llama).fingerprint()
    shard = sorted(llama.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert len({first, second, HuggingFaceModel.open(llama).fingerprint()}) == 3


NAME = Path("Organisation/Model-0.5B")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of huggingface_hub's cache; any access to the network would fail."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def fill(cache: Path) -> Path:
    model = cache / "models--Organisation--Model-0.5B"
    snapshot = model / "snapshots" / REVISION
    for directory in (snapshot, model / "refs", model / "blobs"):
        directory.mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    (model / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot


def test_a_model_in_the_cache(cache: Path) -> None:
    snapshot = fill(cache)
    assert locate(NAME, "config.json") == snapshot


def test_a_model_that_is_not_there_is_to_be_downloaded_first(cache: Path) -> None:
    with pytest.raises(InputError, match=r"download the model first: hf download Organisation/Model-0\.5B$"):
        locate(NAME, "config.json")
    fill(cache)
    with pytest.raises(InputError, match="hf download"):
        locate(NAME, "another.json")


def test_a_directory_of_that_name_is_what_it_is(cache: Path) -> None:
    fill(cache)
    (cache.parent / NAME).mkdir(parents=True)
    assert locate(NAME, "config.json") == NAME


@pytest.mark.parametrize("path", ["model", "/models/x", "../a/b", "a/b/c", "a/b--c", "a/.b", "a b/c"])
def test_other_paths_are_not_names(cache: Path, path: str) -> None:
    assert locate(Path(path), "config.json") == Path(path)
