"""Rows read ahead by a thread, and token NLLs taken in by another, so that the model waits for neither.

Neither thread touches a device: the first hands out host tensors, the second waits for copies that the model's thread
has started.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch

from megatron_miniplm.scoring.rows import BlockRows, Row

#: Rows that may wait for the model.
READ_AHEAD = 4


class HostRow:
    """A row as host tensors, pinned where there is a GPU to copy them to."""

    def __init__(self, row: Row, block: int, *, pin: bool) -> None:
        self.block = block
        self.boundaries = row.boundaries
        self.num_windows = row.num_windows
        self.sequence_K = row.sequence_K
        tensors = (torch.from_numpy(part) for part in (row.tokens_S, row.positions_S, row.scored_K, row.targets_K))
        self.tokens_S, self.positions_S, self.scored_K, self.targets_K = (
            part.pin_memory() if pin else part for part in tensors
        )


class ReadAhead(Iterator[HostRow]):
    """Runs an iterator in a thread, a few items ahead; an error of the thread is raised by `next`."""

    def __init__(self, rows: Iterator[HostRow]) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(READ_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(rows,), name="read-ahead", daemon=True)
        self._thread.start()

    def _read(self, rows: Iterator[HostRow]) -> None:
        try:
            for row in rows:
                self._put(row)
                if self._stopped.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._stopped.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def __next__(self) -> HostRow:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # for whoever asks again
            raise item
        return item

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()


class BlockSums:
    """NLL sums of one block while its rows come in.

    Attributes:
        nll_N: float64 sums in nats.
        num_tokens_N: int64.
        rows_left: rows that have not come in yet.
        first_bad: position of the first sequence that got a prediction which is not finite.
    """

    def __init__(self, num_sequences: int, num_rows: int) -> None:
        self.nll_N = np.zeros(num_sequences)
        self.num_tokens_N = np.zeros(num_sequences, np.int64)
        self.rows_left = num_rows
        self.first_bad: int | None = None

    def add(self, sequence_K: np.ndarray, nll_K: np.ndarray) -> None:
        """Add one row's predictions, those of a sequence together; equal input gives equal bits."""
        if len(sequence_K):
            starts = np.flatnonzero(np.diff(sequence_K, prepend=-1))
            sequences = sequence_K[starts]
            np.add.at(self.nll_N, sequences, np.add.reduceat(nll_K.astype(np.float64), starts))
            np.add.at(self.num_tokens_N, sequences, np.diff(starts, append=len(sequence_K)))
        self.rows_left -= 1
        if self.rows_left == 0 and not np.isfinite(self.nll_N).all():
            self.first_bad = int(np.argmin(np.isfinite(self.nll_N)))


class Collector:
    """Takes in the token NLLs of rows, in the order of the rows, and hands on every finished block; a context manager.

    An error of `on_block` is raised at the end of the context; later blocks are not handed on.

    Args:
        on_block: called in the collector's thread with the position of the block in the run and its sums.
        blocks: of the run, in order.
        lane, num_lanes: which rows of a block come here: every `num_lanes`-th from `lane` on.
        sums_type: what adds up the predictions of a block.
    """

    def __init__(
        self,
        on_block: Callable[[int, BlockSums], None],
        blocks: Sequence[BlockRows],
        *,
        lane: int = 0,
        num_lanes: int = 1,
        sums_type: type[BlockSums] = BlockSums,
    ) -> None:
        self._on_block = on_block
        self._sums = [sums_type(len(block.sequences), len(block.rows[lane::num_lanes])) for block in blocks]
        self._queue: queue.Queue[Any] = queue.Queue()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._take_in, name="collector", daemon=True)

    def put(self, row: HostRow, nll_K: torch.Tensor) -> None:
        """Hand over the NLLs of one row, on the model's device; returns at once.

        It never raises: a rank that leaves the schedule early would leave the others waiting for it.
        """
        event = None
        if nll_K.is_cuda:
            host_K = torch.empty(nll_K.shape, dtype=nll_K.dtype, pin_memory=True)
            host_K.copy_(nll_K, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            nll_K = host_K
        self._queue.put((row, nll_K, event))

    def _take_in(self) -> None:
        try:
            for position, sums in enumerate(self._sums):
                if sums.rows_left == 0:
                    self._on_block(position, sums)
            while (item := self._queue.get()) is not None:
                row, nll_K, event = item
                if event is not None:
                    event.synchronize()
                if row.block >= 0:
                    sums = self._sums[row.block]
                    sums.add(row.sequence_K, nll_K.numpy())
                    if sums.rows_left == 0:
                        self._on_block(row.block, sums)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Wait until everything is taken in.

        Raises:
            BaseException: what `on_block` raised, unless another error is on its way.
        """
        self._queue.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error
