import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from megatron_miniplm.scoring.feed import READ_AHEAD, BlockSums, Collector, HostRow, ReadAhead
from megatron_miniplm.scoring.rows import BlockRows, Row, cut_windows


def row_of(sequences: list[int], block: int = 0) -> HostRow:
    nothing = np.zeros(len(sequences), np.int64)
    row = Row(
        tokens_S=nothing,
        positions_S=nothing,
        boundaries=[0, len(sequences)],
        num_windows=1,
        scored_K=nothing,
        targets_K=nothing,
        sequence_K=np.array(sequences, np.int64),
    )
    return HostRow(row, block, pin=False)


def block_of(num_sequences: int, num_rows: int) -> BlockRows:
    windows = cut_windows(np.full(num_sequences, 2), context_tokens=4, overlap_tokens=1)
    return BlockRows(sequences=range(num_sequences), windows=windows, rows=[np.array([0])] * num_rows)


def test_sums_are_those_of_each_sequence() -> None:
    sums = BlockSums(4, 2)
    sums.add(np.array([2, 2, 0]), np.array([1, 2, 4], np.float32))
    sums.add(np.array([2, 3]), np.array([8, 16], np.float32))
    assert sums.nll_N.tolist() == [4, 0, 11, 16]
    assert sums.num_tokens_N.tolist() == [1, 0, 3, 1]
    assert (sums.rows_left, sums.first_bad) == (0, None)


def test_float64_sums_keep_what_float32_would_lose() -> None:
    sums = BlockSums(1, 1)
    sums.add(np.zeros(1 << 20, np.int64), np.full(1 << 20, 0.1, np.float32))
    assert sums.nll_N[0] == np.float64(np.float32(0.1)) * (1 << 20)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_the_first_bad_sequence_is_named(broken: float) -> None:
    sums = BlockSums(5, 1)
    sums.add(np.array([4, 4, 1, 2]), np.array([1, broken, 1, broken], np.float32))
    assert sums.first_bad == 2


def test_blocks_are_handed_on_as_they_finish() -> None:
    finished: list[tuple[int, list[float]]] = []
    blocks = [block_of(2, 2), block_of(1, 0), block_of(1, 1)]
    with Collector(lambda block, sums: finished.append((block, sums.nll_N.tolist())), blocks) as collector:
        collector.put(row_of([0, 1]), torch.tensor([1.0, 2.0]))
        collector.put(row_of([1]), torch.tensor([4.0]))
        collector.put(row_of([0], block=2), torch.tensor([8.0]))
        collector.put(row_of([], block=-1), torch.empty(0))  # padding
    assert finished == [(1, [0.0]), (0, [1.0, 6.0]), (2, [8.0])]


def test_a_lane_waits_for_its_own_rows_only() -> None:
    finished: list[int] = []
    with Collector(lambda block, _: finished.append(block), [block_of(3, 3)], lane=1, num_lanes=2) as collector:
        collector.put(row_of([1]), torch.tensor([1.0]))
    assert finished == [0]


def test_an_error_is_raised_at_the_end_and_never_while_rows_come() -> None:
    def fail(block: int, sums: BlockSums) -> None:
        raise OSError("disk full")

    def collect() -> None:
        with Collector(fail, [block_of(1, 1), block_of(1, 1)]) as collector:
            for block in (0, 1):
                collector.put(row_of([0], block=block), torch.tensor([1.0]))
                time.sleep(0.05)
            reached.append("all rows")

    reached: list[str] = []
    with pytest.raises(OSError, match="disk full"):
        collect()
    assert reached == ["all rows"]


def test_read_ahead_keeps_the_order_and_stays_a_few_ahead() -> None:
    read: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(50):
            read.append(number)
            yield number

    ahead = ReadAhead(numbers())
    assert next(ahead) == 0
    time.sleep(0.2)
    assert len(read) <= READ_AHEAD + 3
    assert list(ahead) == list(range(1, 50))
    with pytest.raises(StopIteration):
        next(ahead)
    ahead.close()


def test_an_error_of_the_reader_reaches_the_model() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("the corpus is truncated")

    ahead = ReadAhead(broken())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="truncated"):
        next(ahead)


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    ahead = ReadAhead(iter(range(10**9)))
    next(ahead)
    ahead.close()
    assert threading.active_count() == before
