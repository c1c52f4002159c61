import logging
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import identity_of, write_scores

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.scoring.watch import Watch


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    return write_corpus(tmp_path / "corpus", [[1, 2]] * 6)


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


def test_rows_count_before_the_first_block_is_finished(tmp_path: Path, corpus: IndexedCorpus) -> None:
    store = ScoreStore.create_or_resume(tmp_path / "scores", identity_of([corpus], model="scores"))
    watch = Watch(store, {0: 6, 1: 6}, visible=False, tensorboard=None, peak_flops=None)
    watch.begin([0])
    shown = []
    for num_fed_tokens in (2, 4, 9):  # windows that overlap feed more than there is
        watch.look(0.0, num_fed_tokens)
        shown.append(watch._progress.done)
    assert shown == [2, 4, 6]
    store.write_block(0, np.ones(3), np.ones(3))
    watch.look(0.0, 9)
    assert watch._progress.done == 6, "a block that has appeared is not counted twice"
    watch.begin([1])
    watch.look(0.0, 11)
    assert watch._progress.done == 8
    store.write_block(1, np.ones(3), np.ones(3))
    watch.look(0.0, 11)
    assert watch._progress.done == 12


def test_blocks_of_one_pass_that_appear_one_by_one(tmp_path: Path, corpus: IndexedCorpus) -> None:
    store = ScoreStore.create_or_resume(tmp_path / "scores", identity_of([corpus], model="scores"))
    watch = Watch(store, {0: 6, 1: 6}, visible=False, tensorboard=None, peak_flops=None)
    watch.begin([0, 1])
    watch.look(0.0, 7)
    assert watch._progress.done == 7
    store.write_block(0, np.ones(3), np.ones(3))
    watch.look(0.0, 8)
    assert watch._progress.done == 8


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
