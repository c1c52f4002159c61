"""The exact top set, with ties broken by sequence id."""

import numpy as np

from megatron_miniplm.errors import InputError


def check_ratio(ratio: float) -> None:
    if not 0 < ratio <= 1:
        raise InputError(f"--ratio {ratio} must lie in (0, 1]")


def top_sequences(value_N: np.ndarray, num_kept: int) -> np.ndarray:
    """The ids of the `num_kept` greatest values; of equal values the lower id comes first. O(N).

    Args:
        value_N: one value a sequence, without NaN; infinities are ordinary values.
        num_kept: 0 to N.

    Returns:
        (num_kept,) int64, ascending.
    """
    if num_kept == 0:
        return np.empty(0, np.int64)
    threshold = np.partition(value_N, len(value_N) - num_kept)[len(value_N) - num_kept]
    above = np.flatnonzero(value_N > threshold)
    at_threshold = np.flatnonzero(value_N == threshold)[: num_kept - len(above)]
    return np.sort(np.concatenate((above, at_threshold)))


def top_tokens(value_N: np.ndarray, num_tokens_N: np.ndarray, target_tokens: float) -> np.ndarray:
    """The smallest top set that holds at least `target_tokens`; all sequences where they hold fewer. O(N log N).

    Returns:
        Ids, int64, ascending.
    """
    order = np.lexsort((np.arange(len(value_N)), -value_N))
    tokens_before = np.cumsum(num_tokens_N[order], dtype=np.int64) - num_tokens_N[order]
    return np.sort(order[tokens_before < target_tokens])
