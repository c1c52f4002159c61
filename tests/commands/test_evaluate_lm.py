"""What `evaluate-lm` refuses before Megatron is imported."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import main


@pytest.fixture
def required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A run with iterations 2 and 4, of which 6 is being written."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus", [[1, 2, 3]])
    for iteration in (2, 4, 6):
        (tmp_path / f"run/iter_{iteration:07d}").mkdir(parents=True)
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("4")
    return ["evaluate-lm", "--corpus", "corpus", "--scores", "scores"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--load run --checkpoint-iterations 2 3", "run has no iteration 3: it has 2, 4"),
        ("--load run --checkpoint-iterations 6", "run has no iteration 6: it has 2, 4"),
        ("--load run --checkpoint-iterations newest", "--checkpoint-iterations newest: expected latest, all, or"),
        ("--load run --every-nth 0", "--every-nth 0 must be at least 1"),
        ("--load run --ckpt-step 2", "--ckpt-step has no meaning here: give --checkpoint-iterations"),
        ("--load run --json run", "--json run is a directory: give a file"),
        ("--load run --scores corpus.bin", "--scores corpus.bin is a file: give a directory"),
        ("--load run --corpus corpus x=corpus x=corpus", "two corpora are called x: name them, as in NAME"),
        ("--load run --corpus x=nowhere", "nowhere.idx does not exist: give the prefix of a .bin/.idx pair"),
        ("--load run/iter_0000002", "run/iter_0000002 is not a Megatron checkpoint"),
        ("", "--load is missing: give the directory of a Megatron checkpoint"),
    ],
)
def test_refused_in_one_line(
    required: list[str], flags: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([*required, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert sorted(tmp_path.iterdir()) == before
