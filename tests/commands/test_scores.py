import json
from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import identity_of, write_scores

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool

NLL = [3.5, 0.0, 1.25, 2.5, 0.5]
NUM_TOKENS = [3, 0, 1, 2, 1]


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def corpora(tmp_path: Path) -> list:
    """Prefixes of two, no and three sequences."""
    parts = {"web": [[1, 2, 3, 4], []], "none": [], "code": [[5, 6], [7, 8, 9], [7, 8]]}
    return [write_corpus(tmp_path / name, sequences) for name, sequences in parts.items()]


@pytest.fixture
def finished(corpora: list, tmp_path: Path) -> ScoreStore:
    return write_scores(tmp_path / "teacher", corpora, NLL, block_sequences=2)


@pytest.fixture
def started(corpora: list, tmp_path: Path) -> ScoreStore:
    """The first of three blocks."""
    identity = identity_of(corpora, model="teacher", block_sequences=2)
    store = ScoreStore.create_or_resume(tmp_path / "teacher", identity)
    store.write_block(0, NLL[:2], NUM_TOKENS[:2])
    return store


def test_finished(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == (
        "teacher: 3 of 3 blocks, 5 sequences\n7 scored tokens, 1.1071 nats a token\n"  # 7.75 / 7
    )


def test_progress(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == "teacher: 1 of 3 blocks, 5 sequences\n3 scored tokens, 1.1667 nats a token\n"


def test_before_the_first_block(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    started.block_path(0).unlink()
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == "teacher: 0 of 3 blocks, 5 sequences\n"


def test_json(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "num_sequences": 5,
        "num_blocks": 3,
        "num_missing_blocks": 2,
        "num_tokens": 3,
        "mean_nll": pytest.approx(3.5 / 3),
    }


def test_to_parquet(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run_tool("scores", ["teacher", "--to-parquet", "scores.parquet"]) == 0
    assert capsys.readouterr().out.endswith("wrote scores.parquet\n")
    table = parquet.read_table("scores.parquet")
    assert table.to_pydict() == {
        "prefix": ["web", "web", "code", "code", "code"],
        "sequence": [0, 1, 0, 1, 2],
        "nll": NLL,
        "num_tokens": NUM_TOKENS,
    }
    assert parquet.ParquetFile("scores.parquet").num_row_groups == 3


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["."], ". is not a directory of scores: it has no identity.json"),
        (["nothing"], "nothing is not a directory of scores: it has no identity.json"),
        (
            ["teacher", "--to-parquet", "scores.parquet"],
            "teacher is incomplete: 2 of 3 blocks are missing (first: 1): run the same scoring command again",
        ),
    ],
)
def test_errors_are_one_line(
    started: ScoreStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run_tool("scores", argv) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")
    assert not (tmp_path / "scores.parquet").exists()
