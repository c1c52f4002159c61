"""`miniplm plan`: what it prints and writes, which models it takes, what it refuses."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from megatron_runs import VOCAB_SIZE, TinyRun, write_corpus

from megatron_miniplm.cli import main
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.planning.shapes import NAMED_SHAPES, model_shape, require_known_layers

MODELS = ["--teacher", "qwen1.5-1.8b", "--reference", "qwen-104m", "--student", "qwen-200m"]
CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 768,
    "intermediate_size": 2112,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 151936,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--corpus-tokens", "105e9", "--reference-fraction", "0.0476190476", "--json", str(tmp_path / "plan.json")]
    assert main(["plan", *MODELS, "qwen-500m", *flags]) == 0
    printed = capsys.readouterr().out
    plan = json.loads((tmp_path / "plan.json").read_text())
    stages = {stage["name"]: stage for stage in plan["stages"]}
    teacher = stages["score with the teacher"]
    assert teacher["device_hours"] == pytest.approx(teacher["flops"] / (989.4e12 * 0.45) / 3600)
    assert teacher["wall_hours"] == pytest.approx(teacher["device_hours"] / 8)
    (line,) = [line.split() for line in printed.splitlines() if line.startswith("score with the teacher")]
    assert line[4:6] == ["1e+11", f"{teacher['flops']:.2e}"]
    assert plan["break_even_students"]["online KD"] == 3
    assert "against online KD: fewer FLOP from 3 students on" in printed
    assert "against plain training: never fewer FLOP" in printed
    assert plan["models"]["qwen-200m"]["num_parameters"] == 203_437_824


def test_a_calibrated_rate_is_all_that_counts(tmp_path: Path) -> None:
    flags = ["--corpus-tokens", "1e9", "--flops-per-second", "1e12", "--num-gpus", "2", "--json"]
    assert main(["plan", *MODELS, *flags, str(tmp_path / "plan.json")]) == 0
    for stage in json.loads((tmp_path / "plan.json").read_text())["stages"]:
        assert stage["wall_hours"] == pytest.approx(stage["flops"] / 1e12 / 2 / 3600)


def test_the_proxy_is_the_reference_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--corpus-tokens", "1e9", "--sample-fraction", "0.1", "--json", str(tmp_path / "plan.json")]
    assert main(["plan", *MODELS, *flags]) == 0
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["models"]["proxy"] == plan["models"]["reference"]
    assert plan["flops_once"] < 0.2 * plan["flops_once_without_proxy"]
    assert "with the proxy, what is done once costs" in capsys.readouterr().out


def test_lengths_of_a_real_corpus(tmp_path: Path) -> None:
    write_corpus(tmp_path / "one", [[1] * 10, [1] * 10, [1] * 7])
    write_corpus(tmp_path / "two", [[1] * 7])
    corpus = ["--corpus", str(tmp_path / "one"), str(tmp_path / "two"), "--reference-fraction", "0"]
    assert main(["plan", *MODELS, *corpus, "--json", str(tmp_path / "plan.json")]) == 0
    stages = {stage["name"]: stage for stage in json.loads((tmp_path / "plan.json").read_text())["stages"]}
    teacher = stages["score with the teacher"]
    assert teacher["tokens"] == 34
    assert teacher["flops"] == pytest.approx(NAMED_SHAPES["qwen1.5-1.8b"].forward_flops([9, 9, 6, 6]))
    assert "train the reference" not in stages


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    theirs, named = model_shape(str(tmp_path)), NAMED_SHAPES["qwen-200m"]
    assert theirs.num_parameters == named.num_parameters
    assert theirs.training_flops_per_token(1024) == named.training_flops_per_token(1024)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus-tokens", "1e9", "--ratio", "1.5"], "--ratio 1.5 must lie in (0, 1]"),
        (["--corpus-tokens", "nan"], "--corpus-tokens nan must be a positive number"),
        (["--corpus-tokens", "1e9", "--seq-length", "0"], "--seq-length 0 must be a positive number"),
        (["--corpus-tokens", "1e9", "--reference-fraction", "1"], "--reference-fraction 1.0 must lie in [0, 1)"),
        (["--corpus-tokens", "1e9", "--miniplm-window-overlap", "1024"], "must lie in [0, --seq-length 1024)"),
        (["--corpus-tokens", "1e9", "--proxy", "qwen-104m"], "--proxy needs --sample-fraction"),
        (["--corpus-tokens", "1e9", "--gpu", "T4"], "--gpu T4 is not known"),
        (["--corpus-tokens", "1e9", "--teacher", "gpt-9"], "gpt-9 is no model: expected a Hugging Face directory"),
        (["--corpus-tokens", "1e9", "--student", "qwen-200m", "qwen-200m"], "--student names a model twice"),
        (["--corpus", "nowhere/pile"], "nowhere/pile"),
    ],
)
def test_refusals(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *MODELS, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_a_directory_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *MODELS, "--corpus-tokens", "1e9", "--teacher", str(tmp_path)]) == 2
    assert "is not a Megatron checkpoint" in capsys.readouterr().err


def test_layers_without_a_formula_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"checkpoint has multi_latent_attention = True, of which the cost is not known"
    ):
        require_known_layers(Namespace(multi_latent_attention=True), Path("checkpoint"))
    require_known_layers(Namespace(multi_latent_attention=False, moe_layer_freq=1), Path("checkpoint"))


@pytest.mark.parametrize(
    ("name", "num_parameters", "without_embeddings"),
    [
        # As Megatron counts the models that examples/paper/ builds (docs/recipes.md).
        ("qwen-104m", 103_502_336, 25_711_104),
        ("qwen-200m", 203_437_824, 86_750_976),
        ("qwen-500m", 463_987_712, 308_405_248),
        ("qwen-1.2b", 1_160_566_272, 693_818_880),
    ],
)
def test_models_of_the_paper(name: str, num_parameters: int, without_embeddings: int) -> None:
    shape = model_shape(name.upper())
    assert shape.num_parameters == num_parameters
    assert num_parameters - shape.num_embedding_parameters == without_embeddings


@pytest.mark.slow
def test_a_megatron_checkpoint_is_what_was_trained(tiny: TinyRun) -> None:
    shape = model_shape(str(tiny.checkpoint))
    expected = ModelShape(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=8,
        vocab_size=128,
    )
    assert shape == expected
    assert shape.vocab_size > VOCAB_SIZE  # the padded one: training multiplies by all rows
