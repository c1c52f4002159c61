"""What other ratios would keep, told from the histogram of the values."""

from dataclasses import dataclass

import numpy as np

from megatron_miniplm.selection.report.tally import Tally

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The top set of all sequences that may be kept.

    Attributes:
        threshold: lowest kept value; None where some without a value are kept.
        num_sequences: exact.
        num_tokens, mean_value, negative_fraction: interpolated within one bin; the latter two of what has a value, and
            None where nothing has.
    """

    ratio: float
    threshold: float | None
    num_sequences: int
    num_tokens: int
    mean_value: float | None
    negative_fraction: float | None


def what_if(tally: Tally, ratio: float) -> WhatIf:
    """Read one ratio off the histogram; values within a bin count as spread evenly."""
    axis = tally.axes.value
    num_wanted = max(1, int(ratio * tally.num_eligible)) if tally.num_eligible else 0
    count_from_top_B = np.cumsum(tally.value_eligible[::-1])
    num_valued = int(count_from_top_B[-1])
    if num_wanted > num_valued or not num_wanted:
        place, share = 0, 1.0
    else:
        from_top = int(np.argmax(count_from_top_B >= num_wanted))
        place = axis.num_counters - 1 - from_top
        num_above = int(count_from_top_B[from_top]) - int(tally.value_eligible[place])
        share = (num_wanted - num_above) / int(tally.value_eligible[place])

    def kept(column_B: np.ndarray) -> float:
        return float(column_B[place + 1 :].sum() + share * column_B[place])

    num_kept_valued = min(num_wanted, num_valued)
    has_threshold = 0 < num_wanted <= num_valued
    num_negative = float(tally.value_eligible[place + 1 : axis.zero].sum()) + (
        share * tally.value_eligible[place] if place < axis.zero else 0
    )
    return WhatIf(
        ratio=ratio,
        threshold=_value_at(tally, place, share) if has_threshold else None,
        num_sequences=num_wanted,
        num_tokens=round(kept(tally.value_eligible_tokens)),
        mean_value=kept(tally.value_eligible_sums) / num_kept_valued if num_kept_valued else None,
        negative_fraction=num_negative / num_kept_valued if num_kept_valued else None,
    )


def _value_at(tally: Tally, place: int, share: float) -> float:
    """The value of which so much of its bin lies above; of an outer bin the edge."""
    edges = tally.axes.value.edges
    if place == 0:
        return float(edges[0])
    if place > tally.axes.value.num_bins:
        return float(edges[-1])
    return float(edges[place] - share * (edges[place] - edges[place - 1]))
