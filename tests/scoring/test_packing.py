import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.scoring.packing import ROW_MULTIPLE, pack_rows, trimmed_length


def rows_of(lengths: list[int], row_tokens: int) -> list[list[int]]:
    return [row.tolist() for row in pack_rows(np.array(lengths, np.int64), row_tokens=row_tokens)]


def test_literal_rows() -> None:
    """Longest first; 5 goes where 6 is (one left over), not to 3 + 2; equal lengths keep their order."""
    assert rows_of([3, 8, 6, 2, 5, 2], 8) == [[1], [2, 3], [4, 0], [5]]
    assert rows_of([4, 4, 4], 12) == [[0, 1, 2]]


def test_a_window_goes_into_the_fullest_row_that_has_room() -> None:
    assert rows_of([9, 8, 7, 2], 10) == [[1, 3], [0], [2]]


def test_no_windows_no_rows() -> None:
    assert rows_of([], 32) == []


@given(lengths=st.lists(st.integers(1, 64), max_size=80), row_tokens=st.integers(64, 200))
def test_rows_hold_every_window_once_and_no_two_could_be_one(lengths: list[int], row_tokens: int) -> None:
    rows = rows_of(lengths, row_tokens)
    assert sorted(window for row in rows for window in row) == list(range(len(lengths)))
    fills = [sum(lengths[window] for window in row) for row in rows]
    assert all(fill <= row_tokens for fill in fills)
    assert fills == sorted(fills, reverse=True)
    assert len(fills) < 2 or fills[-1] + fills[-2] > row_tokens
    assert rows == rows_of(lengths, row_tokens)


def test_real_lengths_leave_little_room() -> None:
    """4,096 documents of about 300 tokens in rows of 4 x 1,024."""
    lengths_W = np.clip(np.random.default_rng(0).lognormal(5.3, 0.9, 4096).astype(np.int64), 8, 1024)
    rows = pack_rows(lengths_W, row_tokens=4096)
    assert lengths_W.sum() / (len(rows) * 4096) > 0.995


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_trimmed_row_holds_its_tokens(num_tokens: int, row_tokens: int) -> None:
    num_tokens = min(num_tokens, row_tokens)
    length = trimmed_length(num_tokens, row_tokens=row_tokens)
    assert num_tokens <= length <= row_tokens
    assert length == row_tokens or length % ROW_MULTIPLE == 0
