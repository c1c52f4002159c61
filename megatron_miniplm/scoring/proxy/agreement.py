"""How well predicted differences agree with true ones, and with the selection that those would have made."""

from typing import Any

import numpy as np


def agreement(predicted_N: np.ndarray, true_N: np.ndarray, *, ratio: float = 0.5) -> dict[str, Any]:
    """Numbers that tell whether a proxy may choose in the teacher's place.

    Args:
        predicted_N, true_N: of N >= 2 sequences that the proxy was not trained on, in order of their ids.
        ratio: share that a selection would keep.

    Returns:
        `num_sequences`; `pearson` and `spearman` (equal values share the mean of their ranks), None where one side is
        constant; `r_squared`, 1 - squared error / variance of the true ones, below 0 for a proxy worse than their mean;
        `ratio`; `overlap`, the share of the truly best that the predictions choose too; `overlap_at_random`, what a
        draw would reach on average.
    """
    num_kept = max(1, round(ratio * len(true_N)))
    variance = float(true_N.var())
    squared_error = float(np.mean((predicted_N - true_N) ** 2))
    return {
        "num_sequences": len(true_N),
        "pearson": correlation(predicted_N, true_N),
        "spearman": correlation(mean_ranks(predicted_N), mean_ranks(true_N)),
        "r_squared": 1 - squared_error / variance if variance > 0 else None,
        "ratio": ratio,
        "overlap": len(np.intersect1d(_best(predicted_N, num_kept), _best(true_N, num_kept))) / num_kept,
        "overlap_at_random": num_kept / len(true_N),
    }


def correlation(left_N: np.ndarray, right_N: np.ndarray) -> float | None:
    """Pearson's correlation; None where one side is constant."""
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    scale = float(np.sqrt((left_N @ left_N) * (right_N @ right_N)))
    return float(left_N @ right_N) / scale if scale > 0 else None


def mean_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs, float64."""
    _, which_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    last_U = np.cumsum(counts_U)
    return (last_U - (counts_U - 1) / 2)[which_N]


def _best(values_N: np.ndarray, num_kept: int) -> np.ndarray:
    """The greatest values; of equal ones the first, as difference sampling breaks ties."""
    return np.lexsort((np.arange(len(values_N)), -values_N))[:num_kept]


def agreement_lines(report: dict[str, Any]) -> list[str]:
    """The report as a table for people."""

    def number(name: str) -> str:
        return "none" if report[name] is None else f"{report[name]:.3f}"

    return [
        f"agreement with the true difference on {report['num_sequences']:,} held-out sequences:",
        f"  Pearson correlation   {number('pearson'):>7}",
        f"  Spearman correlation  {number('spearman'):>7}",
        f"  R squared             {number('r_squared'):>7}",
        f"  overlap at {report['ratio']:<10} {number('overlap'):>7}   (at random: {number('overlap_at_random')})",
    ]
