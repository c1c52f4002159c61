"""`miniplm report` as a user runs it."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.cli import main


@pytest.fixture(autouse=True)
def selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("web"), [[1, 2, 3], [4, 5], [6, 7, 8, 9]])
    for name, nll in (("teacher", [2, 1, 3]), ("reference", [4, 1, 9])):
        write_scores(Path(name), [corpus], nll)
    scores = ["--teacher-scores", "teacher", "--reference-scores", "reference"]
    for name, ratio in (("refined", "0.67"), ("smaller", "0.34")):
        assert main(["difference-sampling", *scores, "--ratio", ratio, "--output", name]) == 0


def test_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["report", "refined", "--output", "report", "--examples", "2", "--compare", "smaller"]) == 0
    assert capsys.readouterr().out == "report/report.html: 2 of 3 sequences, 7 of 9 tokens\n"
    page = Path("report/report.html").read_text()
    assert page.count("<article>") == 2 + 2 + 2 + 1
    assert 'id="overlap"' in page
    assert sorted(path.name for path in Path("report").iterdir()) == [
        "joint.png",
        "reference_nll.png",
        "report.html",
        "teacher_nll.png",
        "values.png",
    ]


def test_no_examples() -> None:
    assert main(["report", "refined", "--output", "report", "--examples", "0"]) == 0
    assert "<article>" not in Path("report/report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["web"], "web does not exist: give a directory"),
        (["nothing"], "nothing does not exist: give a directory"),
        (["refined", "--tokenizer-model", "bpe"], "--tokenizer-model needs --tokenizer-type: give both"),
        (["refined", "--tokenizer-type", "Other"], "--tokenizer-type Other is not supported"),
        (["refined", "--compare", "teacher"], "teacher holds an artifact of kind scores"),
        (["refined", "--examples", "-1"], "--examples -1 must lie between 0 and 50"),
    ],
    ids=str,
)
def test_refusals(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    capsys.readouterr()
    assert main(["report", *flags, "--output", "report"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("report").exists()
