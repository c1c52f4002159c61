"""Which blocks a replica tries, and when it lists the store anew."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.scoring.dispatch import MIN_MISSES, Pending


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """A store of 40 blocks of one sequence, none published."""
    identity: dict[str, Any] = {
        "model": {},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": 40}],
        "settings": {"block_sequences": 1},
    }
    return ScoreStore.create_or_resume(tmp_path, identity)


def publish(store: ScoreStore, block: int) -> None:
    assert store.write_block(block, np.zeros(1), np.zeros(1, np.int64))


def listed(store: ScoreStore, seed: str = "a") -> Pending:
    pending = Pending(store, seed)
    assert pending.is_worn, "nothing is known before the first listing"
    pending.list_anew()
    assert not pending.is_worn
    return pending


def test_every_missing_block_comes_up_once(store: ScoreStore) -> None:
    publish(store, 7)
    pending = listed(store)
    for _ in range(2):
        assert sorted(pending) == [block for block in range(40) if block != 7]


def test_replicas_have_orders_of_their_own(store: ScoreStore) -> None:
    assert list(listed(store, "a")) == list(listed(store, "a"))
    assert list(listed(store, "a")) != list(listed(store, "b"))


def test_a_walk_goes_on_where_the_last_was_left(store: ScoreStore) -> None:
    whole, pending = list(listed(store)), listed(store)
    first = next(iter(pending))
    pending.drop()  # it was claimed
    assert [first, *pending] == whole


def test_published_blocks_do_not_come_up_again(store: ScoreStore) -> None:
    pending = listed(store)
    whole = list(pending)
    publish(store, 7)
    assert [block for block in pending if not pending.is_done(block)] == [block for block in whole if block != 7]
    assert 7 not in list(pending)


def test_a_list_is_worn_when_asking_has_cost_a_listing(store: ScoreStore) -> None:
    pending = listed(store)
    for block in range(40):
        publish(store, block)
    asked = [block for block in pending if pending.is_done(block)]
    assert len(asked) == MIN_MISSES
    assert pending.is_worn
    pending.list_anew()
    assert list(pending) == []


def test_a_listing_that_lags_behind_does_not_bring_blocks_back(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS may list what it has in memory, and know of a file that it was asked after."""
    pending = listed(store)
    monkeypatch.setattr(store, "missing_blocks", lambda: list(range(40)))
    for block in range(40):
        publish(store, block)
    num_listings = 0
    while [block for block in pending if pending.is_done(block)]:
        pending.list_anew()
        num_listings += 1
    assert num_listings == 40 // MIN_MISSES, "every list brings new knowledge, so it ends"


def test_a_release_in_another_thread_is_no_miss(store: ScoreStore) -> None:
    pending = listed(store)
    ours = next(iter(pending))
    pending.drop()
    publish(store, ours)
    for _ in range(2 * MIN_MISSES):
        assert pending.is_done(ours)
    assert not pending.is_worn
    assert Counter(pending) == Counter(set(range(40)) - {ours})
