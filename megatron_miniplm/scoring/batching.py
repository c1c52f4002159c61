"""Windows -> micro-batches of nearly equal lengths, so that little padding is computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.scoring.pool import Pool
from megatron_miniplm.scoring.windows import Windows

#: Rows are padded to a multiple of this many tokens; keeps matrix shapes friendly and few.
LENGTH_MULTIPLE = 8


def group_by_length(num_inputs_W: np.ndarray, *, max_tokens: int) -> Iterator[np.ndarray]:
    """Group windows, longest first (ties by position), until rows x padded length would pass `max_tokens`.

    Every group has at least one window. The grouping depends on the lengths alone.

    Args:
        num_inputs_W: tokens of each window.
        max_tokens: most tokens of one micro-batch, padding included.

    Yields:
        Positions of the windows of one micro-batch, int64.
    """
    order_W = np.lexsort((np.arange(len(num_inputs_W)), -num_inputs_W))
    start = 0
    while start < len(order_W):
        rows = max(1, max_tokens // padded_length(int(num_inputs_W[order_W[start]])))
        yield order_W[start : start + rows]
        start += rows


def padded_length(num_inputs: int) -> int:
    return -(-num_inputs // LENGTH_MULTIPLE) * LENGTH_MULTIPLE


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """B windows, padded on the right to S tokens; attention is causal, so that padding never reaches a score.

    Attributes:
        tokens_BS, targets_BS: int64; the padding is token 0.
        scored_BS: True where a prediction counts.
        windows_B: position of each row in the block's windows.
    """

    tokens_BS: np.ndarray
    targets_BS: np.ndarray
    scored_BS: np.ndarray
    windows_B: np.ndarray


def micro_batches(pool: Pool, sequences: range, windows: Windows, groups: Sequence[np.ndarray]) -> Iterator[MicroBatch]:
    """Read the tokens of each group of windows.

    Args:
        pool: where the sequences are.
        sequences: global ids that `windows.sequence_W` counts from.
        windows: of these sequences.
        groups: positions in `windows`, from `group_by_length`.
    """
    for windows_B in groups:
        shape = (len(windows_B), padded_length(int(windows.num_inputs_W[windows_B].max())))
        tokens_BS, targets_BS = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        scored_BS = np.zeros(shape, bool)
        for row, window in enumerate(windows_B):
            start, num_inputs = int(windows.start_W[window]), int(windows.num_inputs_W[window])
            tokens = pool.sequence(sequences[int(windows.sequence_W[window])])[start : start + num_inputs + 1]
            tokens_BS[row, :num_inputs], targets_BS[row, :num_inputs] = tokens[:-1], tokens[1:]
            scored_BS[row, int(windows.num_context_W[window]) : num_inputs] = True
        yield MicroBatch(tokens_BS=tokens_BS, targets_BS=targets_BS, scored_BS=scored_BS, windows_B=windows_B)
