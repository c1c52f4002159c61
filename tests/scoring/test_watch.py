import logging
from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.scoring.watch import Watch


def test_a_block_that_cannot_be_read_does_not_end_the_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A rank that left the schedule would leave the others waiting; `ScoreStore.finish` refuses the block."""
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]] * 6)
    store = write_scores(tmp_path / "scores", [corpus], [1.0] * 6)
    store.block_path(1).write_bytes(b"rot")
    watch = Watch(store, {0: 6, 1: 6}, visible=True, tensorboard=None, peak_flops=None)
    with caplog.at_level(logging.WARNING), watch:
        watch.look(0.0)
        watch.look(0.0)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{store.block_path(1)} ")


def test_a_store_that_cannot_be_listed_for_a_moment(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]] * 6)
    store = write_scores(tmp_path / "scores", [corpus], [1.0] * 6)
    watch = Watch(store, {0: 6, 1: 6}, visible=False, tensorboard=None, peak_flops=None)
    blocks = store.directory / "blocks"
    blocks.rename(tmp_path / "away")
    blocks.write_text("a file in the way")
    watch.look(0.0)
    blocks.unlink()
    (tmp_path / "away").rename(blocks)
    watch.look(0.0)
    assert watch._progress.done == 12


def test_of_many_blocks_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred jobs that share a store must not each read all of it."""
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]] * 6)
    store = write_scores(tmp_path / "scores", [corpus], [1.0] * 6, block_sequences=1)
    monkeypatch.setattr("megatron_miniplm.scoring.watch.MAX_READ_BLOCKS", 2)
    read: list[int] = []
    monkeypatch.setattr(store, "read_block", lambda block: read.append(block) or type(store).read_block(store, block))
    watch = Watch(store, dict.fromkeys(range(6), 2), visible=False, tensorboard=None, peak_flops=None)
    watch.look(0.0)
    assert len(read) == 2
    assert watch._progress.done == 12, "progress counts all of them"
