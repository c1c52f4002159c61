"""`miniplm plan`: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import main
from megatron_miniplm.planning.shapes import NAMED_SHAPES

MODELS = ["--teacher", "qwen1.5-1.8b", "--reference", "qwen-104m", "--student", "qwen-200m"]


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--corpus-tokens", "1e9", "--ratio", "1.5"], "--ratio 1.5 must lie in (0, 1]"),
        (["--corpus-tokens", "nan"], "--corpus-tokens nan must be a positive number"),
        (["--corpus-tokens", "1e9", "--seq-length", "0"], "--seq-length 0 must be a positive number"),
        (["--corpus-tokens", "1e9", "--reference-fraction", "1"], "--reference-fraction 1.0 must lie in [0, 1)"),
        (["--corpus-tokens", "1e9", "--window-overlap", "1024"], "must lie in [0, --seq-length 1024)"),
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
