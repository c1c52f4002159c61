"""Every command that uses scores compares what it reads with what was written, not only `--verify`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.score_blocks import Seal, encode_block
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import main

SCORES = ["--teacher-scores", "teacher", "--reference-scores", "reference"]
COMMANDS = {
    "difference-sampling": ["difference-sampling", *SCORES, "--ratio", "0.5", "--output", "again"],
    "report": ["report", "refined", "--output", "report"],
    "explain": ["explain", "refined", "--sequence", "4"],
    "scores --to-parquet": ["scores", "teacher", "--to-parquet", "scores.parquet"],
    "scores --verify": ["scores", "teacher", "--verify"],
    "inspect --check": ["inspect", "teacher", "--check"],
}


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoreStore:
    """Three blocks, with a selection that was made of them."""
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("web"), [[1, 2, 3], [4, 5], [6, 7, 8, 9], [1, 3], [2, 4], [5, 7, 9], [8, 8]])
    stores = [write_scores(Path(name), [corpus], nll) for name, nll in (("teacher", range(7)), ("reference", [3] * 7))]
    assert main(["difference-sampling", *SCORES, "--ratio", "0.5", "--output", "refined"]) == 0
    return stores[0]


def flip_a_bit(store: ScoreStore) -> None:
    data = bytearray(store.block_path(1).read_bytes())
    data[130] ^= 1
    store.block_path(1).write_bytes(data)


def other_scores(store: ScoreStore) -> None:
    """A whole block of the same model and corpus, from another run."""
    scores_N = store.read_block(1)
    scores_N["nll"] += 1
    store.block_path(1).write_bytes(encode_block(scores_N, store.seal))


def scores_of_another_model(store: ScoreStore) -> None:
    store.block_path(1).write_bytes(encode_block(store.read_block(1), Seal.of("ab" * 16)))


@pytest.mark.parametrize("damage", [flip_a_bit, other_scores, scores_of_another_model])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_block_that_is_not_what_was_written_is_named(
    teacher: ScoreStore, capfd: pytest.CaptureFixture[str], command: str, damage: Callable[[ScoreStore], None]
) -> None:
    damage(teacher)
    capfd.readouterr()
    assert main(COMMANDS[command]) == 2
    captured = capfd.readouterr()
    assert f"{Path('teacher/blocks/00000001.npy')} " in captured.err + captured.out
    assert not list(Path().glob("again/manifest.json"))
    assert not Path("scores.parquet").exists()


def test_intact_scores_are_used(teacher: ScoreStore) -> None:
    assert [main(command) for command in COMMANDS.values()] == [0] * len(COMMANDS)
    assert np.array_equal(ScoreStore.open(teacher.directory).read_all()["nll"], np.arange(7))
