"""One replica's work: claim blocks, score them, publish them, until the store is complete or it is time to stop.

    writer           claims blocks ──► all ranks of the replica: the same blocks, the same rows
    last stages      token NLLs ──► collector thread of each lane ──► writer publishes, releases the claim

Replicas of one job, and jobs that share the store, are dealt with alike: nobody waits for anybody but at the very end,
when the last blocks are in other hands. Each replica goes through the missing blocks in an order of its own, so that of
thousands few meet at a block; what that costs the file server is counted in benchmarks/results/scale.md.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np

from megatron_miniplm.artifacts.claims import Claims, Handout
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import MiniPLMError, NonFiniteScoreError, unusable_path
from megatron_miniplm.indexed.pool import Pool
from megatron_miniplm.mcore.replica import StopRequest
from megatron_miniplm.scoring.feed import BlockSums
from megatron_miniplm.scoring.rows import BlockRows
from megatron_miniplm.scoring.scorer import Scorer
from megatron_miniplm.scoring.watch import Watch

#: Rows that one pass through the pipeline has at the least, in pipeline stages: it fills and drains at a cost of one.
ROWS_PER_STAGE = 16
MAX_BLOCKS = 64
POLL_SECONDS = 1.0
#: Replicas that wait for the last blocks look so often at most, all of them together.
MAX_LOOKS_PER_SECOND = 100
MAX_WAIT_SECONDS = 30.0
#: Names that one call of the file system lists, about: so much dearer than one question is a listing.
NAMES_PER_READ = 1000
MIN_MISSES = 8
#: Above every `position << 40 | sequence`.
_NONE_BAD = 1 << 62


class Order(IntEnum):
    """What the writer tells its replica to do next."""

    SCORE = 0
    WAIT = 1
    LEAVE = 2


class Pending:
    """Blocks that may still be missing, in an order of this replica's own.

    Others publish blocks meanwhile, which is noticed block by block when one comes up. A new listing is due when so
    many turned out to be published that asking has cost what a listing costs.

    Args:
        seed: of the order; different for every replica.
    """

    def __init__(self, store: ScoreStore, seed: str) -> None:
        self._store = store
        self._rng = np.random.default_rng(list(seed.encode()))
        self._blocks: deque[int] = deque()
        self._up: int | None = None  # the last of them, while it is asked after
        self._done: set[int] = set()  # a listing may know less
        self._misses_left = 0

    @property
    def is_worn(self) -> bool:
        """Whether a new listing is cheaper than to go on."""
        return self._misses_left <= 0

    def list_anew(self) -> None:
        missing = np.array([block for block in self._store.missing_blocks() if block not in self._done], np.int64)
        self._blocks = deque(self._rng.permutation(missing).tolist())
        self._misses_left = max(MIN_MISSES, self._store.plan.num_blocks // NAMES_PER_READ)

    def __iter__(self) -> Iterator[int]:
        """Every block once, until the list is worn; the next walk goes on where this one was left."""
        for _ in range(len(self._blocks)):
            if self.is_worn:
                return
            self._blocks.rotate(-1)
            self._up = self._blocks[-1]
            yield self._up

    def is_done(self, block: int) -> bool:
        """Whether a block is published; then it does not come up again."""
        if not self._store.has_block(block):
            return False
        if block == self._up:  # one of ours is asked after when it is released, in another thread
            self._misses_left -= 1
            self._done.add(block)
            self.drop()
        return True

    def drop(self) -> None:
        """Take out the block that came up last."""
        self._blocks.pop()
        self._up = None


class Dispatch:
    """The loop of one replica.

    Args:
        store: to be filled.
        scorer: the replica's model.
        pool: the sequences.
        claims: of this process on the writer, to be entered; None on the other ranks.
        stop: asked between two passes.
        watch: told of every row.
        choose: which sequences of a block are scored; None: all.
    """

    def __init__(
        self,
        store: ScoreStore,
        scorer: Scorer,
        pool: Pool,
        claims: Claims | None,
        stop: StopRequest,
        watch: Watch,
        choose: Callable[[range], np.ndarray] | None,
    ) -> None:
        self._store = store
        self._scorer = scorer
        self._pool = pool
        self._claims = claims
        self._stop = stop
        self._watch = watch
        self._choose = choose
        self._pending = Pending(store, claims.owner.name) if claims is not None else None
        self._next_look = 0.0
        self._error: MiniPLMError | None = None

    def run(self) -> None:
        """Work until nothing is missing or a stop is wished; a collective call of the replica.

        Raises:
            NonFiniteScoreError: on every rank of the replica; blocks that were finished are published.
            MiniPLMError: on the writer, where the store cannot be written; the other ranks just return.
        """
        with contextlib.ExitStack() as stack:
            self._enter_claims(stack)
            self._loop()
        if self._error is not None:
            raise self._error

    def _enter_claims(self, stack: contextlib.ExitStack) -> None:
        """On the writer; where they cannot be made its replica must still be told, in step."""
        try:
            if self._claims is not None:
                stack.enter_context(self._claims)
        except MiniPLMError as error:
            self._error = error

    def _loop(self) -> None:
        while True:
            order, *blocks = self._scorer.replica.from_writer(self._next_order(), size=MAX_BLOCKS + 1)
            if order == Order.SCORE:
                self._score(blocks)
            elif order == Order.WAIT:
                time.sleep(POLL_SECONDS)
            self._tick()
            if order == Order.LEAVE or self._is_over():
                break

    def _is_over(self) -> bool:
        """Whether any rank of the replica wants to leave; a collective call."""
        return self._scorer.replica.agree_max(int(self._error is not None or self._stop.is_made())) > 0

    def _next_order(self) -> list[int]:
        """On the writer: what to do next; claims the blocks of one pass. Nothing on other ranks."""
        if self._claims is None:
            return []
        if self._error is not None:
            return [Order.LEAVE]
        if time.monotonic() < self._next_look:
            return [Order.WAIT]
        try:
            blocks, num_held = self._claim(self._claims)
        except (MiniPLMError, OSError) as error:
            self._error = unusable_path(error) if isinstance(error, OSError) else error
            return [Order.LEAVE]
        if blocks:
            return [Order.SCORE, *blocks]
        if not num_held:
            return [Order.LEAVE]
        self._next_look = time.monotonic() + min(self._claims.num_owners / MAX_LOOKS_PER_SECOND, MAX_WAIT_SECONDS)
        return [Order.WAIT]

    def _claim(self, claims: Claims) -> tuple[list[int], int]:
        """Blocks that make a pass worth its start, and how many missing ones others hold."""
        blocks: list[int] = []
        num_rows = 0
        while True:
            handout = self._next_block(claims)
            for block in handout.blocks:
                blocks.append(block)
                num_tokens = int(self._pool.lengths(self._store.plan.sequences(block)).sum())
                num_rows += -(-num_tokens // self._scorer.row_tokens)
            is_enough = self._scorer.num_stages == 1 or num_rows >= ROWS_PER_STAGE * self._scorer.num_stages
            if is_enough or not handout.blocks or len(blocks) == MAX_BLOCKS:
                return blocks, handout.num_held

    def _next_block(self, claims: Claims) -> Handout:
        assert self._pending is not None
        while True:
            if self._pending.is_worn:
                self._pending.list_anew()
            handout = claims.next_blocks(self._pending, 1, is_done=self._pending.is_done)
            if handout.blocks:
                self._pending.drop()
            if handout.blocks or not self._pending.is_worn:
                return handout

    def _score(self, blocks: Sequence[int]) -> None:
        """One pass: all blocks through the pipeline; a collective call of the replica."""
        plans = [self._plan(block) for block in blocks]
        self._watch.begin(blocks)
        kept: dict[int, BlockSums] = {}

        def on_block(position: int, sums: BlockSums) -> None:
            if self._scorer.replica.num_lanes == 1 and sums.first_bad is None:
                self._publish(blocks[position], plans[position], sums)
            else:
                kept[position] = sums

        try:
            self._scorer.score(plans, on_block, on_row=self._tick)
        except MiniPLMError as error:  # of `_publish`, once the pass is over: the replica is still in step
            self._error = error
        self._fail_on_bad(plans, kept)
        if self._scorer.replica.num_lanes > 1:
            self._publish_lanes(blocks, plans, kept)

    def _tick(self) -> None:
        """Show where the job stands; the lanes of a replica share its rows evenly."""
        self._watch.tick(self._scorer.num_flops, self._scorer.num_fed_tokens * self._scorer.replica.num_lanes)

    def _plan(self, block: int) -> BlockRows:
        sequences = self._store.plan.sequences(block)
        return self._scorer.plan(sequences, self._choose(sequences) if self._choose else None)

    def _publish(self, block: int, plan: BlockRows, sums: BlockSums) -> None:
        """On the writer, in the collector's thread: one finished block."""
        assert self._claims is not None
        num_tokens_N = sums.num_tokens_N
        if self._choose is not None:
            num_tokens_N = np.where(self._choose(plan.sequences), num_tokens_N, NOT_SCORED)
        self._store.write_block(block, sums.nll_N, num_tokens_N)
        self._claims.release(block)

    def _publish_lanes(self, blocks: Sequence[int], plans: Sequence[BlockRows], kept: Mapping[int, BlockSums]) -> None:
        """Add up the lanes' sums, block by block; a collective call of the replica."""
        replica = self._scorer.replica
        for position, (block, plan) in enumerate(zip(blocks, plans, strict=True)):
            sums = kept.get(position) or BlockSums(len(plan.sequences), 0)
            sums.nll_N = replica.add_lanes(sums.nll_N)
            sums.num_tokens_N = replica.add_lanes(sums.num_tokens_N)
            if replica.is_writer and self._error is None:
                try:
                    self._publish(block, plan, sums)
                except MiniPLMError as error:
                    self._error = error

    def _fail_on_bad(self, plans: Sequence[BlockRows], kept: Mapping[int, BlockSums]) -> None:
        """Find out where NaN or infinity came from, and stop the job with it; a collective call of the replica."""
        bad = [position << 40 | sums.first_bad for position, sums in kept.items() if sums.first_bad is not None]
        found = _NONE_BAD - self._scorer.replica.agree_max(_NONE_BAD - min(bad, default=_NONE_BAD))  # the first
        if found == _NONE_BAD:
            return
        plan, at = plans[found >> 40], found & ((1 << 40) - 1)
        corpus, index = self._pool.locate(plan.sequences[at])
        error = NonFiniteScoreError(
            f"{corpus.prefix}: sequence {index} got a score that is not finite: {self._scorer.find_fault(plan, at)}; "
            "nothing of its block was written. Look at the sequence (miniplm inspect PREFIX --sequence "
            f"{index}), at the checkpoint, and at the precision (--bf16 reaches further than --fp16)"
        )
        error.reported_elsewhere = not self._scorer.replica.is_writer
        self._stop.make()
        raise error
