"""Windows of one block -> full rows, by best fit; which windows share a row depends on their lengths alone."""

import bisect

import numpy as np

#: A row that is not full may end early, at a multiple of this: keeps matrix shapes friendly and few.
ROW_MULTIPLE = 64


def pack_rows(num_inputs_W: np.ndarray, *, row_tokens: int) -> list[np.ndarray]:
    """Best-fit decreasing: longest window first, each into the fullest row that still has room for it.

    O(W log W + W R) for W windows and R rows, in memory of the same order: a block is the whole of what is looked at,
    so that neither the number of workers nor the order of the blocks changes a row.

    Args:
        num_inputs_W: tokens of each window, 1 to `row_tokens`.
        row_tokens: tokens of a full row.

    Returns:
        Positions of the windows of each row, int64: the fullest rows first, the one with most room last; in a row the
        longest first.
    """
    order_W = np.lexsort((np.arange(len(num_inputs_W)), -num_inputs_W))
    rooms: list[tuple[int, int]] = []  # (tokens left, row), ascending; rows without room have left the list
    rows: list[list[int]] = []
    left: list[int] = []
    for window, num_inputs in zip(order_W.tolist(), num_inputs_W[order_W].tolist(), strict=True):
        at = bisect.bisect_left(rooms, (num_inputs, -1))
        if at < len(rooms):
            _, row = rooms.pop(at)
        else:
            row = len(rows)
            rows.append([])
            left.append(row_tokens)
        rows[row].append(window)
        left[row] -= num_inputs
        if left[row]:
            bisect.insort(rooms, (left[row], row))
    fullest_first = sorted(range(len(rows)), key=lambda row: (left[row], row))
    return [np.array(rows[row], np.int64) for row in fullest_first]


def trimmed_length(num_tokens: int, *, row_tokens: int) -> int:
    """Length of a row that may end early: the tokens, rounded up to `ROW_MULTIPLE`, at most a full row."""
    return min(row_tokens, -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE)
