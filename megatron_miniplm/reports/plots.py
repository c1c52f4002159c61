"""Histograms as pictures, for light and for dark pages."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from megatron_miniplm.reports.histograms import Axis, Histograms
from megatron_miniplm.runtime.requirements import missing_packages_are_user_errors
from megatron_miniplm.selection.difference import UNITS, Measure

_NUM_BARS = 128
_DPI = 120
_MAX_CELL_BINS, _MIN_MEAN_COUNT = 8, 4


@dataclass(frozen=True, kw_only=True)
class Palette:
    """Colours of one kind of page."""

    ground: str
    ink: str
    faint: str
    kept: str
    dropped: str
    line: str
    density: str


LIGHT = Palette(
    ground="#ffffff", ink="#24292f", faint="#d8dee4", kept="#1f6feb", dropped="#b6bfc9", line="#c2410c", density="GnBu"
)
DARK = Palette(
    ground="#161b22",
    ink="#d1d7de",
    faint="#30363d",
    kept="#58a6ff",
    dropped="#57606a",
    line="#ffa657",
    density="viridis",
)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One picture.

    Attributes:
        name: of its file, without suffix.
        title: what it shows.
        light, dark: PNG.
    """

    name: str
    title: str
    light: bytes
    dark: bytes


def require_matplotlib() -> None:
    """Raise `MissingPackageError` if there is none."""
    with missing_packages_are_user_errors("a report"):
        import matplotlib
    matplotlib.use("Agg")


def draw_plots(found: Histograms, thresholds: list[float]) -> list[Plot]:
    """Plot all values for which there are scores.

    Args:
        thresholds: lowest kept values, one for all or one per domain; none if values alone do not decide.
    """
    unit = found.unit
    values, nll_TRK = found.values, found.nll_TRK
    value_BK = np.stack([values.sequences - values.kept_sequences, values.kept_sequences], axis=1)
    label = f"{found.what} ({unit})"
    plots = [_plot("values", label, partial(_bars, axis=found.axis, counts_BK=value_BK, label=label, at=thresholds))]
    for name, axis, other in (("teacher", found.teacher, 1), ("reference", found.reference, 0)):
        if axis is not None:
            label = f"{name} NLL ({unit})"
            bars = partial(_bars, axis=axis, counts_BK=nll_TRK.sum(axis=other), label=label, at=[])
            plots.append(_plot(f"{name}_nll", label, bars))
    if found.teacher is not None and found.reference is not None:
        density = partial(
            _density,
            teacher=found.teacher,
            reference=found.reference,
            counts_TR=nll_TRK.sum(axis=2)[1:-1, 1:-1],
            measure=found.measure,
            at=thresholds,
        )
        plots.append(_plot("joint", f"teacher and reference NLL ({unit})", density))
    return plots


def _plot(name: str, title: str, draw: Callable[[Any, Any, Palette], None]) -> Plot:
    """Draw on a figure and its axes, once in the colours of each kind of page."""
    from matplotlib.figure import Figure

    pictures = []
    for palette in (LIGHT, DARK):
        figure = Figure(figsize=(6.6, 3.6), layout="constrained", facecolor=palette.ground)
        axes = figure.subplots()
        axes.set_facecolor(palette.ground)
        axes.tick_params(colors=palette.ink, labelsize=9)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(palette.faint)
        axes.xaxis.label.set_color(palette.ink)
        axes.yaxis.label.set_color(palette.ink)
        draw(figure, axes, palette)
        stream = io.BytesIO()
        figure.savefig(stream, dpi=_DPI, metadata={"Software": None})
        pictures.append(stream.getvalue())
    return Plot(name=name, title=title, light=pictures[0], dark=pictures[1])


def _bars(
    figure: Any, axes: Any, palette: Palette, *, axis: Axis, counts_BK: np.ndarray, label: str, at: list[float]
) -> None:
    """Dropped and kept sequences by bin, the columns of `counts_BK`, stacked; lines at the thresholds `at`."""
    edges, dropped, kept = _coarse(axis, counts_BK[1:-1])
    axes.stairs(dropped + kept, edges, baseline=kept, fill=True, color=palette.dropped, label="dropped")
    axes.stairs(kept, edges, fill=True, color=palette.kept, label="kept")
    for number, threshold in enumerate(at):
        line_label = _line_label(at) if number == 0 else None
        axes.axvline(threshold, color=palette.line, linewidth=1.2 if len(at) == 1 else 0.5, label=line_label)
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(label)
    axes.set_ylabel("sequences")
    axes.yaxis.set_major_formatter(_compact)
    axes.grid(axis="y", color=palette.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, labelcolor=palette.ink, fontsize=9)


def _line_label(thresholds: list[float]) -> str:
    return f"threshold {thresholds[0]:.4g}" if len(thresholds) == 1 else "thresholds of the domains"


def _coarse(axis: Axis, counts_BK: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges, dropped and kept counts of wider bars over the bins in use."""
    used_B = np.flatnonzero(counts_BK.sum(axis=1))
    first, stop = (int(used_B[0]), int(used_B[-1]) + 1) if len(used_B) else (0, axis.num_bins)
    step = max(1, -(-(stop - first) // _NUM_BARS))
    stop = min(axis.num_bins, first + step * -(-(stop - first) // step))
    starts = np.arange(first, stop, step)
    summed = np.add.reduceat(counts_BK[:stop], starts, axis=0)
    return axis.edges[np.append(starts, stop)], summed[:, 0], summed[:, 1]


def _density(
    figure: Any,
    axes: Any,
    palette: Palette,
    *,
    teacher: Axis,
    reference: Axis,
    counts_TR: np.ndarray,
    measure: Measure,
    at: list[float],
) -> None:
    """Sequences by both NLLs, with lines where the measure has the value of a threshold."""
    from matplotlib.colors import LogNorm

    step = 1  # cells with few sequences say little
    while step < _MAX_CELL_BINS and counts_TR.sum() < _MIN_MEAN_COUNT * counts_TR.size:
        step *= 2
        counts_TR = counts_TR.reshape(len(counts_TR) // 2, 2, -1, 2).sum(axis=(1, 3))
    mesh = axes.pcolormesh(
        teacher.edges[::step],
        reference.edges[::step],
        np.ma.masked_equal(counts_TR.T, 0),
        norm=LogNorm(1, max(2, int(counts_TR.max()))),
        cmap=palette.density,
        rasterized=True,
    )
    bar = figure.colorbar(mesh, ax=axes, label="sequences a cell", pad=0.01, format=_compact)
    bar.ax.minorticks_off()
    bar.ax.tick_params(colors=palette.ink, labelsize=9)
    bar.ax.yaxis.label.set_color(palette.ink)
    bar.outline.set_visible(False)
    if "tokens" not in measure.names:
        _level_lines(axes, palette, teacher.edges, reference.edges, measure, at)
    for axis, other, set_limits in ((teacher, 1, axes.set_xlim), (reference, 0, axes.set_ylim)):
        if len(used_B := np.flatnonzero(counts_TR.sum(axis=other))):
            set_limits(axis.edges[used_B[0] * step], axis.edges[(used_B[-1] + 1) * step])
    axes.set_xlabel(f"teacher NLL ({UNITS[measure.reduction]})")
    axes.set_ylabel(f"reference NLL ({UNITS[measure.reduction]})")


def _level_lines(
    axes: Any, palette: Palette, teacher_T: np.ndarray, reference_R: np.ndarray, measure: Measure, at: list[float]
) -> None:
    teacher_RT, reference_RT = np.meshgrid(teacher_T, reference_R)
    whole = Measure(expression=measure.expression, reduction="sum")  # NLLs are reduced already
    value_RT = whole.values(teacher_RT.ravel(), reference_RT.ravel(), np.ones(teacher_RT.size, np.int64))
    value_RT = value_RT.reshape(teacher_RT.shape)
    inside = sorted({value for value in at if value_RT.min() < value < value_RT.max()})
    if inside:
        axes.contour(teacher_T, reference_R, value_RT, levels=inside, colors=palette.line, linewidths=1.2)
        axes.plot([], [], color=palette.line, linewidth=1.2, label=_line_label(at))
        axes.legend(frameon=False, labelcolor=palette.ink, fontsize=9, loc="upper left")


def _compact(value: float, place: int) -> str:
    """`1,500,000` as `1.5 M`."""
    for size, suffix in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{suffix}"
    return f"{value:g}"
