"""What a kept sequence weighs: a function of its value, with a cap, scaled so that the mean over all kept ones is 1.

    softmax   exp(value / temperature)
    linear    value minus the lowest kept value
    rank      share of the kept sequences that have a lower value, ties counted half

A weight is an expected number of times that the sequence is read (`artifacts.selections.copies_of`), or a factor of its
loss. Ranks are those of bins of 1/65,536 of the range of values, interpolated within: exact ones would need a sort.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.rule import Rule

NUM_BINS = 1 << 16
_TOLERANCE = 1e-6
_MAX_PASSES = 20  # each moves what is near the cap to its right side

#: Of some sequences: sum of the functions that are not capped, number of capped ones, number of all.
Sums = tuple[float, int, int]


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """Weights from values.

    Attributes:
        kind: `softmax`, `linear` or `rank`.
        low, high: least and greatest finite value that is kept; others count as the nearer of them.
        temperature: of the softmax, in the unit of the values.
        cap: greatest weight.
        scale: by which the function above is multiplied before it is capped.
        edges: of rank: (NUM_BINS + 1,) share of the kept sequences below each edge of the bins.
    """

    kind: str
    low: float
    high: float
    temperature: float
    cap: float
    scale: float = 1.0
    edges: np.ndarray | None = None

    @classmethod
    def fitted(cls, rule: Rule, low: float, high: float, counts: np.ndarray) -> Self:
        """The weighting of a selection, with the scale as the bins of its values tell it; `balanced` is exact.

        Args:
            low, high: least and greatest finite value that is kept.
            counts: (NUM_BINS,) kept sequences in each bin of `bins`.

        Raises:
            InputError: no scale gives a mean of 1 under the cap.
        """
        edges = np.append(0, np.cumsum(counts)) / max(1, counts.sum()) if rule.weights == "rank" else None
        weighting = cls(
            kind=rule.weights,
            low=low,
            high=high,
            temperature=rule.weight_temperature,
            cap=rule.weight_cap,
            edges=edges,
        )
        centres = low + (high - low) * (np.arange(NUM_BINS) + 0.5) / NUM_BINS
        centres[0], centres[-1] = low, high  # what weighs nothing must not seem to weigh a little
        return replace(weighting, scale=_solve(weighting.unscaled(centres), counts, rule.weight_cap))

    def bins(self, value_N: np.ndarray) -> np.ndarray:
        """In which of NUM_BINS equal parts of [low, high] each value lies, int64."""
        return bins(value_N, self.low, self.high)

    def unscaled(self, value_N: np.ndarray) -> np.ndarray:
        """The function above, float64, not negative."""
        value_N = np.clip(value_N, self.low, self.high)
        if self.low == self.high:
            return np.ones_like(value_N)
        if self.kind == "softmax":
            return np.exp((value_N - self.high) / self.temperature)
        if self.kind == "linear":
            return value_N - self.low
        assert self.edges is not None
        return np.interp(
            (value_N - self.low) * (NUM_BINS / (self.high - self.low)), np.arange(NUM_BINS + 1), self.edges
        )

    def weights(self, value_N: np.ndarray) -> np.ndarray:
        """The weight of each kept sequence, float32."""
        return np.minimum(self.scale * self.unscaled(value_N), self.cap).astype(np.float32)

    def partial_sums(self, value_N: np.ndarray) -> Sums:
        """What `balanced` needs of some of the kept sequences: sum of what is not capped, number capped, number."""
        unscaled_N = self.unscaled(value_N)
        is_capped_N = unscaled_N * self.scale > self.cap
        return float(unscaled_N[~is_capped_N].sum()), int(is_capped_N.sum()), len(value_N)

    def balanced(self, sums: Callable[[Self], Iterable[Sums]]) -> Self:
        """With the scale that makes the mean 1, to a millionth; nearly always two passes.

        Args:
            sums: gives the `partial_sums` of all kept sequences under a weighting, in any order.
        """
        weighting = self
        for _ in range(_MAX_PASSES):
            below_cap, capped, numbers = zip(*sums(weighting), strict=True)
            total, num_capped = math.fsum(below_cap), sum(capped)
            mean = (weighting.scale * total + self.cap * num_capped) / max(1, sum(numbers))
            if total == 0 or abs(mean - 1) < _TOLERANCE:
                break
            weighting = replace(weighting, scale=(sum(numbers) - self.cap * num_capped) / total)
        return weighting


def bins(value_N: np.ndarray, low: float, high: float) -> np.ndarray:
    """In which of NUM_BINS equal parts of [low, high] each value lies, int64; one outside is in the nearest."""
    if low == high:
        return np.zeros(len(value_N), np.int64)
    place_N = (np.clip(value_N, low, high) - low) * (NUM_BINS / (high - low))
    return np.minimum(place_N.astype(np.int64), NUM_BINS - 1)


def _solve(unscaled_B: np.ndarray, counts: np.ndarray, cap: float) -> float:
    """The scale at which the mean of `min(scale * unscaled, cap)` is 1, by bisection of its logarithm."""
    total = counts.sum()
    if total == 0:
        return 1.0
    if cap * counts[unscaled_B > 0].sum() < total:
        raise InputError(
            f"--weight-cap {cap:g}: too few of the kept sequences have a weight at all for a mean of 1; raise the cap"
        )
    with np.errstate(over="ignore"):
        low, high = -800.0, 800.0
        for _ in range(100):
            middle = (low + high) / 2
            mean = (counts * np.minimum(np.exp(middle) * unscaled_B, cap)).sum() / total
            low, high = (middle, high) if mean < 1 else (low, middle)
        return math.exp(min(high, 700.0))
