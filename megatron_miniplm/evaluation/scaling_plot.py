"""Scaling curves as a picture: points, fitted laws, and bands of their intervals beyond the points."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.evaluation.plot import load_pyplot
from megatron_miniplm.evaluation.scaling import FittedScalingLaw
from megatron_miniplm.evaluation.scaling_points import ScalingPoints

NUM_GRID_POINTS = 200
#: The picture reaches so far beyond the last compute that it shows.
MARGIN = 1.3


def plot_scaling(
    points: Mapping[str, ScalingPoints],
    laws: Mapping[str, FittedScalingLaw],
    extrapolated_to: Sequence[float],
    confidence: float,
    paths: Sequence[Path],
) -> None:
    """Draw all methods in one picture and write it once for each path, in the format of the path's ending.

    Raises:
        InputError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    least = min(float(part.compute_P.min()) for part in points.values())
    most_seen = max(float(part.compute_P.max()) for part in points.values())
    most = max([most_seen, *extrapolated_to])
    grid_C = np.geomspace(least / MARGIN, most * MARGIN, NUM_GRID_POINTS)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.5), constrained_layout=True)
    seen_C = grid_C <= most_seen
    for name, law in laws.items():
        (line,) = axes.plot(grid_C[seen_C], law.loss(grid_C[seen_C]), label=name)
        colour = line.get_color()
        axes.plot(grid_C[~seen_C], law.loss(grid_C[~seen_C]), color=colour, linestyle="--")
        low_C, high_C = law.interval(lambda each: each.loss(grid_C[:, None]), confidence)
        axes.fill_between(grid_C, low_C, high_C, color=colour, alpha=0.2, linewidth=0)
        part = points[name]
        many = len(part.loss_P) > 60
        axes.scatter(part.compute_P, part.loss_P, s=6 if many else 18, alpha=0.5 if many else 1.0, color=colour)
    axes.set_xscale("log")
    axes.set_xlim(grid_C[0], grid_C[-1])
    axes.set_ylim(*_loss_limits(points, laws, most * MARGIN, confidence))
    if most > most_seen:
        axes.axvspan(most_seen, grid_C[-1], color="0.93", zorder=0, linewidth=0)
        axes.annotate(
            "extrapolated", (most_seen, 1.0), xycoords=("data", "axes fraction"), xytext=(6, -14),
            textcoords="offset points", color="0.4",
        )  # fmt: skip
    axes.set_xlabel("training compute (FLOPs)")
    axes.set_ylabel("held-out loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(title=f"fit, {confidence:.0%} interval")
    with pyplot.rc_context({"svg.hashsalt": "miniplm"}):  # equal inputs give equal bytes
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with atomic_output(path) as stream:
                figure.savefig(stream, format=path.suffix[1:], dpi=150, metadata=metadata)
    pyplot.close(figure)


def _loss_limits(
    points: Mapping[str, ScalingPoints], laws: Mapping[str, FittedScalingLaw], most: float, confidence: float
) -> tuple[float, float]:
    """Room for points and curves, and for bands as far as the points' own range: wild bands must not hide the rest."""
    losses_P = np.concatenate([part.loss_P for part in points.values()])
    span = float(np.ptp(losses_P))
    ends = [float(law.loss(most)) for law in laws.values()]
    lows = [float(law.interval(lambda each: each.loss(most), confidence)[0]) for law in laws.values()]
    floor = max(min(lows), min(*losses_P, *ends) - span)
    return floor - 0.05 * span, float(losses_P.max()) + 0.08 * span
