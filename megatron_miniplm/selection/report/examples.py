"""Which sequences are shown: the first of a stream by some order, in memory that does not grow with it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_GAINED, LEAST_GAINED, JUST_KEPT, JUST_DROPPED = "most gained", "least gained", "just kept", "just dropped"
GROUPS = (MOST_GAINED, LEAST_GAINED, JUST_KEPT, JUST_DROPPED)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence.

    Attributes:
        sequence: global id.
        value: what it was ranked by.
        teacher, reference: NLL in the unit of the reduction; None without that model.
        num_tokens: of the sequence.
        is_kept: whether the selection has it.
    """

    sequence: int
    value: float
    teacher: float | None
    reference: float | None
    num_tokens: int
    is_kept: bool


#: Key (the greatest first), minus global id, example: tuples that order as the examples do.
Ranked = tuple[float, int, Example]


class BestExamples:
    """The examples with the greatest keys; of equal ones the lowest ids.

    Args:
        num_wanted: how many are kept.
    """

    def __init__(self, num_wanted: int) -> None:
        self.num_wanted = num_wanted
        self._best: list[Ranked] = []

    @property
    def bound(self) -> float:
        """Later sequences must have a greater key."""
        if len(self._best) < self.num_wanted:
            return -np.inf
        return self._best[-1][0] if self._best else np.inf

    def add(self, found: Sequence[Ranked]) -> None:
        """Look at some of a piece; pieces come in order."""
        if found:
            self._best = heapq.nlargest(self.num_wanted, [*self._best, *found], key=lambda ranked: ranked[:2])

    def in_order(self) -> list[Example]:
        return [example for *_, example in self._best]


def best_places(key_N: np.ndarray, num_wanted: int, bound: float) -> np.ndarray:
    """Places of the greatest keys above a bound, int64; of equal keys the first."""
    place_L = np.flatnonzero(key_N > bound)
    if num_wanted == 0 or not len(place_L):
        return place_L[:0]
    key_L = key_N[place_L]
    if len(place_L) > num_wanted:
        lowest = np.partition(key_L, -num_wanted)[-num_wanted]
        is_best_L = key_L >= lowest
        place_L, key_L = place_L[is_best_L], key_L[is_best_L]
    return place_L[np.argsort(-key_L, kind="stable")[:num_wanted]]


def group_keys(
    value_N: np.ndarray, kept_N: np.ndarray, eligible_N: np.ndarray, lowest_N: np.ndarray | None
) -> dict[str, np.ndarray]:
    """By which key each group takes its examples, float64; -inf for what is not of the group.

    Args:
        value_N: -inf where nothing was scored.
        lowest_N: what a sequence needs to be kept, NaN without; None where values do not decide.
    """
    finite_N = np.isfinite(value_N)
    keys = {
        MOST_GAINED: np.where(finite_N & kept_N, value_N, -np.inf),
        LEAST_GAINED: np.where(finite_N, -value_N, -np.inf),
    }
    if lowest_N is not None:
        with np.errstate(invalid="ignore"):
            above_N = value_N - lowest_N
            keys[JUST_KEPT] = np.where(finite_N & kept_N & (above_N >= 0), -above_N, -np.inf)
            is_below_N = finite_N & ~kept_N & eligible_N & (above_N <= 0)
        keys[JUST_DROPPED] = np.where(is_below_N, above_N, -np.inf)
    return keys
