"""Histograms of scores, and what other ratios would keep, read off them."""

from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from megatron_miniplm.selection.difference import UNITS, Measure

#: Quantiles of a sample. Values further out by more than the span between the two lie outside of the bins.
_QUANTILES = (0.001, 0.999)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Bins of equal width, and one counter more on each side for the values outside.

    Zero is the edge between two bins if it lies inside, so negative values have bins of their own.

    Attributes:
        first: number of the first bin, counted in widths from zero.
        width: of a bin.
        num_bins: without the outer two counters.
    """

    first: int
    width: float
    num_bins: int

    @classmethod
    def covering(cls, value_N: np.ndarray, num_bins: int, *, with_zero: bool = False) -> Self:
        """Bins for values of which these are a sample; values that are not finite are ignored.

        Args:
            with_zero: extend the bins to zero if the values do not reach it.
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
        width = (high - low) / (num_bins - 1)  # aligning the bins with zero takes up to one
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
        """The counter of each value, int64: 0 below the bins, then one per bin, the last above. No value is NaN."""
        place_N = np.floor(value_N * (1 / self.width))
        place_N += 1 - self.first
        return np.clip(place_N, 0, self.num_bins + 1, out=place_N).astype(np.int64)


@dataclass(kw_only=True)
class Counts:
    """How much there is and how much of it is kept, by class. All (C,): sums of values float64, the others int64."""

    sequences: np.ndarray
    tokens: np.ndarray
    kept_sequences: np.ndarray
    kept_tokens: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int) -> Self:
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.zeros(num_classes, float if name.endswith("sums") else np.int64) for name in names})

    @classmethod
    def of(
        cls, class_N: np.ndarray, num_classes: int, length_N: np.ndarray, kept_N: np.ndarray, **others: np.ndarray
    ) -> Self:
        """Count sequences, whether they are kept being bool; `others` are the other fields."""
        both_N = 2 * class_N + kept_N
        sequences_CK = np.bincount(both_N, minlength=2 * num_classes).reshape(-1, 2)
        # float64 counts exactly up to 2 ** 53
        tokens_CK = np.bincount(both_N, length_N, 2 * num_classes).astype(np.int64).reshape(-1, 2)
        return cls(
            sequences=sequences_CK.sum(axis=1),
            tokens=tokens_CK.sum(axis=1),
            kept_sequences=sequences_CK[:, 1],
            kept_tokens=tokens_CK[:, 1],
            **others,
        )

    def add(self, other: Self, at: slice = slice(None)) -> None:
        for field in fields(self):
            getattr(self, field.name)[at] += getattr(other, field.name)


@dataclass(kw_only=True)
class ValueCounts(Counts):
    """Scored sequences by the counter of their value.

    Attributes:
        eligible, eligible_tokens: the part that the rule allows to be kept.
        eligible_sums: of its finite values.
    """

    eligible: np.ndarray
    eligible_tokens: np.ndarray
    eligible_sums: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """The histograms of a report.

    Attributes:
        measure: what sequences are ranked by.
        axis, values: of what is ranked by.
        teacher, reference: axes of the NLLs in the unit of the measure; None if those are not known.
        nll_TRK: scored sequences by the counters of teacher and reference NLL (one if not known), dropped and kept.
    """

    measure: Measure
    axis: Axis
    values: ValueCounts
    teacher: Axis | None
    reference: Axis | None
    nll_TRK: np.ndarray

    @classmethod
    def zeros(cls, measure: Measure, axis: Axis, teacher: Axis | None, reference: Axis | None) -> Self:
        shape = [1 if one is None else one.num_counters for one in (teacher, reference)]
        return cls(
            measure=measure,
            axis=axis,
            values=ValueCounts.zeros(axis.num_counters),
            teacher=teacher,
            reference=reference,
            nll_TRK=np.zeros((*shape, 2), np.int64),
        )

    @property
    def what(self) -> str:
        """Name of the value that sequences are ranked by."""
        return "difference" if self.measure.is_difference else self.measure.expression

    @property
    def unit(self) -> str:
        return UNITS[self.measure.reduction]


RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The sequences with the highest values at some ratio.

    Attributes:
        threshold: lowest kept value; None if sequences without a value are kept.
        num_sequences: exact.
        num_tokens, mean_value, negative_fraction: interpolated within one bin. The latter two are of sequences with a
            value, and None without any.
    """

    ratio: float
    threshold: float | None
    num_sequences: int
    num_tokens: int
    mean_value: float | None
    negative_fraction: float | None


def what_if(histograms: Histograms, num_eligible: int, ratio: float) -> WhatIf:
    """What a ratio of all eligible sequences would keep, as if the values in each bin were spread evenly."""
    axis, values = histograms.axis, histograms.values
    num_wanted = max(1, int(ratio * num_eligible)) if num_eligible else 0
    count_from_top_B = np.cumsum(values.eligible[::-1])
    num_valued = int(count_from_top_B[-1])
    if num_wanted > num_valued or not num_wanted:
        place, share = 0, 1.0
    else:
        from_top = int(np.argmax(count_from_top_B >= num_wanted))
        place = axis.num_counters - 1 - from_top
        num_above = int(count_from_top_B[from_top]) - int(values.eligible[place])
        share = (num_wanted - num_above) / int(values.eligible[place])

    def kept(column_B: np.ndarray) -> float:
        return float(column_B[place + 1 :].sum() + share * column_B[place])

    # Of an outer counter the edge, of which nothing more is known.
    edges = axis.edges
    threshold = float(edges[np.clip(place, 0, axis.num_bins)])
    if 0 < place <= axis.num_bins:
        threshold -= share * float(edges[place] - edges[place - 1])
    num_kept_valued = min(num_wanted, num_valued)
    num_negative = kept(np.where(np.arange(axis.num_counters) < axis.zero, values.eligible, 0))
    return WhatIf(
        ratio=ratio,
        threshold=threshold if 0 < num_wanted <= num_valued else None,
        num_sequences=num_wanted,
        num_tokens=round(kept(values.eligible_tokens)),
        mean_value=kept(values.eligible_sums) / num_kept_valued if num_kept_valued else None,
        negative_fraction=num_negative / num_kept_valued if num_kept_valued else None,
    )
