"""Which blocks a process tries, what it asks the file system, and when it lists the store again."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted_calls import counted

from megatron_miniplm.artifacts import block_queue
from megatron_miniplm.artifacts.block_queue import MAX_LOOKS, MIN_MISSES, BlockQueue
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.scores import ScoreStore

NUM_BLOCKS = 40


@pytest.fixture
def store(tmp_path: Path) -> ScoreStore:
    """A store of 40 blocks of one sequence, none published."""
    identity: dict[str, Any] = {
        "model": {},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": NUM_BLOCKS}],
        "settings": {"block_sequences": 1},
    }
    return ScoreStore.create_or_resume(tmp_path, identity)


@pytest.fixture
def entered(store: ScoreStore) -> Iterator[Callable[[], Leases]]:
    """Leases of another process on the store."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Leases(store.directory, renew_seconds=3600))


@pytest.fixture
def queue(store: ScoreStore, entered: Callable[[], Leases]) -> BlockQueue:
    return BlockQueue(store, entered(), "a")


def publish(store: ScoreStore, block: int) -> None:
    assert store.write_block(block, np.zeros(1), np.zeros(1, np.int64))


def drain(queue: BlockQueue) -> list[int]:
    """All blocks that are to be had now, in order."""
    blocks = []
    while (block := queue.take()) is not None:
        blocks.append(block)
    return blocks


def test_every_missing_block_is_handed_out_once(store: ScoreStore, queue: BlockQueue) -> None:
    publish(store, 7)
    assert sorted(drain(queue)) == [block for block in range(NUM_BLOCKS) if block != 7]
    assert queue.is_empty
    assert drain(queue) == []


def test_processes_have_orders_of_their_own(store: ScoreStore, entered: Callable[[], Leases]) -> None:
    orders = []
    for seed in "aab":
        leases = entered()
        orders.append(drain(BlockQueue(store, leases, seed)))
        for block in orders[-1]:
            leases.release(block)
    assert orders[0] == orders[1] != orders[2]


def test_blocks_of_others_are_passed_over_and_come_up_again(
    store: ScoreStore, queue: BlockQueue, entered: Callable[[], Leases]
) -> None:
    other = entered()
    for block in range(0, NUM_BLOCKS, 2):
        assert other.claim(block)
    found = set(drain(queue))
    assert found == set(range(1, NUM_BLOCKS, 2)), "at once, whatever the order"
    assert not queue.is_empty, "others may die"
    for block in found | set(range(0, NUM_BLOCKS, 2)):
        publish(store, block)
    queue._next_look = 0.0
    assert queue.take() is None
    assert queue.is_empty


def test_one_look_at_blocks_of_others_is_bounded(
    store: ScoreStore, queue: BlockQueue, entered: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = entered()
    for block in range(NUM_BLOCKS):
        assert other.claim(block)
    calls = counted(monkeypatch)
    assert queue.take() is None
    assert calls.count("link") == MAX_LOOKS
    assert len(calls) <= 8 * MAX_LOOKS + 2


def test_the_last_free_block_is_found_among_those_of_others(store: ScoreStore, entered: Callable[[], Leases]) -> None:
    leases, other = entered(), entered()
    order = drain(BlockQueue(store, leases, "a"))
    leases.release(order[-1])
    assert BlockQueue(store, other, "a").take() == order[-1]


def test_who_waits_does_not_ask_before_its_time(
    store: ScoreStore, queue: BlockQueue, entered: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes look three times in three hundredths of a second, all together."""
    clock = [100.0]
    monkeypatch.setattr(block_queue.time, "monotonic", lambda: clock[0])
    other, _ = entered(), entered()
    for block in range(NUM_BLOCKS):
        assert other.claim(block)
    assert queue.take() is None
    calls = counted(monkeypatch)
    clock[0] += 0.029
    assert queue.take() is None
    assert calls == []
    clock[0] += 0.002
    assert queue.take() is None
    assert calls


def test_the_block_of_an_expired_lease_is_taken(
    store: ScoreStore, queue: BlockQueue, entered: Callable[[], Leases]
) -> None:
    other = entered()
    for block in range(NUM_BLOCKS):
        assert other.claim(block)
    other.__exit__()
    assert sorted(drain(queue)) == list(range(NUM_BLOCKS))


def test_a_block_that_is_published_while_it_is_claimed_is_not_handed_out(
    store: ScoreStore, queue: BlockQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = Leases.claim

    def publish_then_claim(self: Leases, block: int) -> bool:
        if block == 7:
            publish(store, block)
        return claim(self, block)

    monkeypatch.setattr(Leases, "claim", publish_then_claim)
    assert sorted(drain(queue)) == [block for block in range(NUM_BLOCKS) if block != 7]
    assert not list((store.directory / "claims").glob("00000007.*"))


def test_the_store_is_listed_again_when_asking_has_cost_a_listing(
    store: ScoreStore, queue: BlockQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings: list[int] = []
    missing_blocks = store.missing_blocks
    monkeypatch.setattr(store, "missing_blocks", lambda: (listings.append(1), missing_blocks())[1])
    first = queue.take()
    for block in range(NUM_BLOCKS):
        if block != first:
            publish(store, block)
    calls = counted(monkeypatch)
    assert drain(queue) == []
    assert len(listings) == 2
    assert calls.count("stat") == MIN_MISSES + 1, "the block that the new listing brings is asked for, too"


def test_a_listing_that_lags_behind_does_not_bring_blocks_back(
    store: ScoreStore, queue: BlockQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS may list what it has in memory, and know of a file that it was asked for."""
    listings: list[int] = []
    monkeypatch.setattr(store, "missing_blocks", lambda: (listings.append(1), list(range(NUM_BLOCKS)))[1])
    for block in range(NUM_BLOCKS):
        publish(store, block)
    assert queue.take() is None
    assert queue.is_empty
    assert len(listings) == 1 + NUM_BLOCKS // MIN_MISSES, "every listing brings new knowledge, so it ends"
