"""Ranges of histograms."""

from dataclasses import dataclass
from typing import Self

import numpy as np

#: Of a sample; what lies further out by more than the span between them counts as outside.
_QUANTILES = (0.001, 0.999)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Bins of one width, and one more below and above them for what lies outside.

    Zero is an edge of two bins (where it lies inside), so that negative values have bins of their own.

    Attributes:
        first: number of the first bin, counted in widths from zero.
        width: of a bin.
        num_bins: without the outer two.
    """

    first: int
    width: float
    num_bins: int

    @classmethod
    def covering(cls, value_N: np.ndarray, num_bins: int, *, with_zero: bool = False) -> Self:
        """Bins for values of which these are a sample; what is not finite is ignored.

        Args:
            with_zero: the bins reach to zero, wherever the values lie.
        """
        finite_N = value_N[np.isfinite(value_N)]
        if not len(finite_N):
            finite_N = np.zeros(1)
        inner_low, inner_high = np.quantile(finite_N, _QUANTILES).tolist()
        span = inner_high - inner_low
        low = max(inner_low - span, float(finite_N.min()))
        high = min(inner_high + span, float(finite_N.max()))
        if with_zero:
            low, high = min(low, 0.0), max(high, 0.0)
        span = max(high - low, 1e-6 * max(abs(low), abs(high)), 1e-6)
        low, high = low - 0.01 * span, high + 0.01 * span
        width = (high - low) / (num_bins - 1)  # moving the bins to zero takes up to one
        return cls(first=int(np.floor(low / width)), width=width, num_bins=num_bins)

    @property
    def num_counters(self) -> int:
        return self.num_bins + 2

    @property
    def edges(self) -> np.ndarray:
        """(num_bins + 1,) edges of the bins, float64."""
        return (self.first + np.arange(self.num_bins + 1)) * self.width

    @property
    def zero(self) -> int:
        """The first counter of values that are not negative."""
        return min(max(1 - self.first, 0), self.num_counters)

    def counters(self, value_N: np.ndarray) -> np.ndarray:
        """In which counter each value belongs, int64: 0 below the bins, then one a bin, the last above; no NaN."""
        place_N = np.floor(value_N * (1 / self.width))
        place_N += 1 - self.first
        return np.clip(place_N, 0, self.num_bins + 1, out=place_N).astype(np.int64)
