"""The missing blocks of a store, handed to one process one by one.

Every process goes through them in an order of its own, so that of thousands few meet at a block. What that costs the
file server is counted in benchmarks/results/scale.md.
"""

import time
from collections import deque
from typing import Protocol

import numpy as np

from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.score_blocks import BlockPlan

#: Blocks of others that are looked at in a row. Those that are not reached come up next time.
MAX_LOOKS = 8
#: All waiting processes together look for work this often at most.
MAX_TAKES_PER_SECOND = 100
MAX_WAIT_SECONDS = 30.0
#: How many names one call of the file system lists, about, and so how many questions cost as much as a listing.
NAMES_PER_READ = 1000
MIN_MISSES = 8


class BlockStore(Protocol):
    """What the queue needs of `ScoreStore` and `Parts`."""

    plan: BlockPlan

    def has_block(self, block: int) -> bool: ...

    def missing_blocks(self) -> list[int]: ...


class BlockQueue:
    """Claims missing blocks. Blocks that others publish meanwhile are dropped as they come up, for one question each.

    Args:
        leases: of this process; entered before the first `take`.
        seed: of the order; different for every process.
    """

    def __init__(self, store: BlockStore, leases: Leases, seed: str) -> None:
        self._store = store
        self._leases = leases
        self._rng = np.random.default_rng(list(seed.encode()))
        self._blocks: deque[int] = deque()
        self._published: set[int] = set()  # a listing by NFS may be older
        self._misses_left = 0  # published blocks until it is cheaper to list the store again
        self._next_look = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether every block was published or ours at the last `take`."""
        return not self._blocks

    def take(self) -> int | None:
        """Claim a missing block. None: there is none (`is_empty`), or others work on the rest: ask again."""
        if time.monotonic() < self._next_look:
            return None
        block = self._walk()
        if block is not None or not self._blocks:
            return block
        num_processes, claimed = self._leases.listing()
        self._blocks = deque(sorted(self._blocks, key=claimed.__contains__))  # those without a claim first
        if self._blocks[0] not in claimed and (block := self._walk()) is not None:
            return block
        self._next_look = time.monotonic() + min(num_processes / MAX_TAKES_PER_SECOND, MAX_WAIT_SECONDS)
        return None

    def _walk(self) -> int | None:
        """Claim the first block that is to be had; None after MAX_LOOKS that others hold, or if there are no more."""
        num_held = 0
        while True:
            if self._misses_left <= 0:
                self._list()
            if num_held >= min(len(self._blocks), MAX_LOOKS):
                return None
            block = self._blocks[0]
            if self._store.has_block(block):
                self._drop_published()
            elif not self._leases.claim(block):
                self._blocks.rotate(-1)
                num_held += 1
            elif self._store.has_block(block):  # since we asked
                self._leases.release(block)
                self._drop_published()
            else:
                return self._blocks.popleft()

    def _list(self) -> None:
        missing = np.array([block for block in self._store.missing_blocks() if block not in self._published], np.int64)
        self._blocks = deque(self._rng.permutation(missing).tolist())
        self._misses_left = max(MIN_MISSES, self._store.plan.num_blocks // NAMES_PER_READ)

    def _drop_published(self) -> None:
        self._published.add(self._blocks.popleft())
        self._misses_left -= 1
