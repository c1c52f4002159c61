"""What is refused at once, before Megatron is imported."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import NOT_SCORED
from megatron_miniplm.cli import run_tool

SCORES = ["--teacher-scores", "teacher", "--reference-scores", "reference"]
FLAGS = ["--corpus", "web", "--difference-scores", "predicted", "--proxy-steps", "5", "--save", "proxy"]


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    web = write_corpus(Path("web"), [[1, 2, 3], [4, 5], [5, 6]])
    books = write_corpus(Path("books"), [[1, 2, 3]])
    sampled = {"sample_fraction": 0.5, "sample_seed": 0}
    write_scores(Path("teacher"), [web], [1.0, 0.0, 3.0], [2, NOT_SCORED, 1], settings=sampled)
    write_scores(Path("reference"), [web], [1.0, 2.0, 3.0])
    write_scores(Path("stranger"), [books], [1.0])
    write_scores(Path("guesses"), [web], [1.0, 2.0, 3.0], settings={"quantity": "predicted difference"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--teacher-scores", "none"], "none is not a directory of scores: it has no identity.json"),
        (["--reference-scores", "none"], "none is not a directory of scores: it has no identity.json"),
        (["--teacher-scores", "reference"], "reference holds scores of every sequence: there is nothing to predict; "),
        (["--reference-scores", "stranger"], "teacher holds scores of web ["),
        (["--reference-scores", "guesses"], "guesses holds predicted differences: give the NLLs that score-corpus"),
        (["--corpus", "nowhere"], "nowhere.idx does not exist: give the prefix of a .bin/.idx pair, "),
        (["--proxy-steps", "0"], "--proxy-steps 0 must be at least 1"),
        (["--proxy-batch-sequences", "0"], "--proxy-batch-sequences 0 must be at least 1"),
        (["--holdout-fraction", "1"], "--holdout-fraction 1.0 must lie in (0, 1)"),
        (["--train-iters", "5"], "--train-iters has no meaning here: give --proxy-steps"),
        (["--global-batch-size", "5"], "--global-batch-size has no meaning here: give --proxy-batch-sequences"),
        (["--load", "proxy"], "--load and --save are both proxy: give the proxy a directory of its own"),
        (["--load", "a", "--load-hf", "b"], "--load and --load-hf name two models: give one"),
        ([], "--load is missing: give the directory of a Megatron checkpoint"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run_tool("fit-proxy", [*SCORES, *FLAGS, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not Path("proxy").exists()
    assert not Path("predicted").exists()


def test_a_proxy_needs_a_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("fit-proxy", [*SCORES, *FLAGS[:-2]]) == 2
    assert capsys.readouterr().err == "error: --save is missing: give a directory for the checkpoints of the proxy\n"
