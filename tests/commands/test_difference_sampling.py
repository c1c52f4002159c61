from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.cli import run_tool
from megatron_miniplm.training.refinement import Refinement

STORES = ["--teacher-scores", "teacher", "--reference-scores", "reference"]


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of 3, 1, 2 and 5 tokens; differences a token of 1, none, -0.5 and 0.25."""
    monkeypatch.chdir(tmp_path)
    corpora = [write_corpus(Path("web"), [[1, 2, 3], [4], [5, 6], [1, 2, 3, 4, 5]])]
    write_scores(Path("teacher"), corpora, [1.0, 0.0, 3.0, 4.0])
    write_scores(Path("reference"), corpora, [3.0, 0.0, 2.5, 5.0])


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("difference-sampling", [*STORES, "--ratio", "0.5", "--output", "refined"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "refined: kept 2 of 4 sequences, 6 of 7 scored tokens",
        "difference (nats a token): mean 0.2500, of the kept 0.6250, lowest kept 0.2500; negative 33.3%",
        "train on it with: --data-args-path refined/data_args.txt",
    ]
    assert (tmp_path / "refined" / "data_args.txt").read_text().startswith(f"8 {tmp_path}/refined/web_refined-")


def test_sum_of_differences_and_share_of_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ratio", "0.2", "--ratio-of", "tokens", "--score-reduction", "sum", "--output", "refined"]
    assert run_tool("difference-sampling", [*STORES, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "refined: kept 1 of 4 sequences, 2 of 7 scored tokens",
        "difference (nats): mean 0.8333, of the kept 2.0000, lowest kept 2.0000; negative 33.3%",
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ratio", "0"], "--ratio 0.0 must lie in (0, 1]"),
        (["--ratio", "nan"], "--ratio nan must lie in (0, 1]"),
        (
            ["--ratio", "1", "--teacher-scores", "none"],
            "none is not a directory of scores: it has no identity.json",
        ),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    assert run_tool("difference-sampling", [*STORES, "--output", "refined", *flags]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")
    assert not (tmp_path / "refined").exists()


def test_another_selection_in_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("difference-sampling", [*STORES, "--ratio", "0.5", "--output", "refined"]) == 0
    capsys.readouterr()
    assert run_tool("difference-sampling", [*STORES, "--ratio", "0.25", "--output", "refined"]) == 2
    assert capsys.readouterr().err == ("error: refined holds another selection: give another --output, or delete it\n")


def test_a_selection_that_keeps_nothing_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("difference-sampling", [*STORES, "--threshold", "1000", "--output", "refined"]) == 2
    captured = capsys.readouterr()
    assert "kept 0 of 4 sequences" in captured.out
    assert "train on it with" not in captured.out
    assert captured.err.splitlines()[-1].startswith("error: refined keeps no sequence")


@pytest.mark.parametrize("flags", [[], ["--ratio", "0.5", "--threshold", "1"]])
def test_one_target(capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    assert run_tool("difference-sampling", [*STORES, *flags, "--output", "refined"]) == 2
    assert capsys.readouterr().err == "error: give one of --ratio, --target-tokens and --threshold\n"


@pytest.mark.parametrize("given", [[], STORES[:2], [*STORES[2:], "--difference-scores", "teacher"]])
def test_scores_of_both_models_or_predictions(capsys: pytest.CaptureFixture[str], given: list[str]) -> None:
    assert run_tool("difference-sampling", [*given, "--ratio", "0.5", "--output", "refined"]) == 2
    expected = "error: give --teacher-scores and --reference-scores, or --difference-scores, or all three\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("index_only", [False, True])
def test_the_flags_that_use_the_weights(capsys: pytest.CaptureFixture[str], index_only: bool) -> None:
    """The printed blend is of prefixes that `--miniplm-selection` refines, with the weights of the selection."""
    flags = ["--ratio", "0.5", "--weights", "softmax", "--output", "refined", *(["--index-only"] if index_only else [])]
    assert run_tool("difference-sampling", [*STORES, *flags]) == 0
    hint = capsys.readouterr().out.splitlines()[-1]
    assert "--miniplm-selection refined --miniplm-weighting resample" in hint
    if index_only:
        (prefix,) = expand_prefixes(["refined"])
    else:
        prefix = Path(hint.partition("--data-path ")[2].split()[1])
    refined = Refinement.open(["refined"], weighting="loss").of(str(prefix))
    assert refined is not None
    assert refined.loss_weights(refined.look_up(refined.selected.indices())[1]).tolist() != [1.0, 1.0]


def test_views_that_repeat_by_weight_need_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--ratio", "0.5", "--weights", "softmax", "--repeat-by-weight", "--output", "refined"]
    assert run_tool("difference-sampling", [*STORES, *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "train on it with: --data-args-path refined/data_args.txt"


def test_a_blank_in_a_path_is_refused_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("difference-sampling", [*STORES, "--ratio", "0.5", "--output", "my data/refined"]) == 2
    assert "contains a blank, tab or line break" in capsys.readouterr().err
    assert not Path("my data").exists()
