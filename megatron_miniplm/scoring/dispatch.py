"""One replica's work: claim blocks, score them, publish them, until the store is complete or it is time to stop.

    writer           claims blocks ──► all ranks of the replica: the same blocks, the same rows
    last stages      token NLLs ──► collector thread of each lane ──► writer publishes, releases the claim

Replicas of one job, and jobs that share the store, are treated alike (`artifacts.leases`). Nobody waits for anybody
until the very end, when others work on the last blocks.
"""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum

import numpy as np

from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import MiniPLMError, NonFiniteScoreError, unusable_path
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore.replica import StopRequest
from megatron_miniplm.scoring.feed import BlockSums
from megatron_miniplm.scoring.rows import BlockRows
from megatron_miniplm.scoring.scorer import Scorer
from megatron_miniplm.scoring.watch import Watch

#: Rows that one pass through the pipeline has at the least, in pipeline stages: it fills and drains at a cost of one.
ROWS_PER_STAGE = 16
MAX_BLOCKS = 64
POLL_SECONDS = 1.0
#: Above every `position << 40 | sequence`.
_NONE_BAD = 1 << 62


class Order(IntEnum):
    """What the writer tells its replica to do next."""

    SCORE = 0
    WAIT = 1
    LEAVE = 2


class Dispatch:
    """The loop of one replica.

    Args:
        store: to be filled.
        scorer: the replica's model.
        pool: the sequences.
        leases: of this process on the writer, not yet entered; None on the other ranks.
        stop: asked between two passes.
        watch: told of every row.
        choose: which sequences of a block are scored; None: all.
    """

    def __init__(
        self,
        store: ScoreStore,
        scorer: Scorer,
        pool: Pool,
        leases: Leases | None,
        stop: StopRequest,
        watch: Watch,
        choose: Callable[[range], np.ndarray] | None,
    ) -> None:
        self._store = store
        self._scorer = scorer
        self._pool = pool
        self._leases = leases
        self._stop = stop
        self._watch = watch
        self._choose = choose
        self._queue = BlockQueue(store, leases, leases.owner.name) if leases is not None else None
        self._error: MiniPLMError | None = None

    def run(self) -> None:
        """Work until nothing is missing or a stop is wished; a collective call of the replica.

        Raises:
            NonFiniteScoreError: on every rank of the replica; blocks that were finished are published.
            MiniPLMError: on the writer, where the store cannot be written; the other ranks just return.
        """
        with contextlib.ExitStack() as stack:
            self._enter_leases(stack)
            self._loop()
        if self._error is not None:
            raise self._error

    def _enter_leases(self, stack: contextlib.ExitStack) -> None:
        """On the writer; if that fails its replica must still be told, in step."""
        try:
            if self._leases is not None:
                stack.enter_context(self._leases)
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
        if self._queue is None:
            return []
        if self._error is not None:
            return [Order.LEAVE]
        try:
            blocks = self._take(self._queue)
        except (MiniPLMError, OSError) as error:
            self._error = unusable_path(error) if isinstance(error, OSError) else error
            return [Order.LEAVE]
        if blocks:
            return [Order.SCORE, *blocks]
        return [Order.LEAVE if self._queue.is_empty else Order.WAIT]

    def _take(self, queue: BlockQueue) -> list[int]:
        """Claim blocks until a pass is worth its start, as far as there are any."""
        blocks: list[int] = []
        num_rows = 0
        while len(blocks) < MAX_BLOCKS and (block := queue.take()) is not None:
            blocks.append(block)
            num_tokens = int(self._pool.lengths(self._store.plan.sequences(block)).sum())
            num_rows += -(-num_tokens // self._scorer.row_tokens)
            if self._scorer.num_stages == 1 or num_rows >= ROWS_PER_STAGE * self._scorer.num_stages:
                break
        return blocks

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
        assert self._leases is not None
        num_tokens_N = sums.num_tokens_N
        if self._choose is not None:
            num_tokens_N = np.where(self._choose(plan.sequences), num_tokens_N, NOT_SCORED)
        self._store.write_block(block, sums.nll_N, num_tokens_N)
        self._leases.release(block)

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
