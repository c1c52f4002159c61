"""An analysis as a picture."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.evaluation.analysis.measure import COSINE_DISTANCE, DETERMINANT_DISTANCE, Analysis
from megatron_miniplm.evaluation.plot import load_pyplot
from megatron_miniplm.indexed.pieces import NO_DOMAIN

MOST_DOMAINS = 12


def plot_analysis(analysis: Analysis, path: Path) -> None:
    """Draw lengths, both measures of diversity with two standard errors, and shares of tokens by domain.

    Raises:
        MissingPackageError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    panels: list[Any] = [_draw_lengths, _draw_cosine, _draw_determinant]
    if any(one.origin.tokens for one in analysis.datasets.values()):
        panels.append(_draw_domains)
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.8), constrained_layout=True)
    for draw, axis in zip(panels, axes, strict=True):
        draw(analysis, axis)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(analysis.datasets))
    with atomic_output(path) as stream:
        figure.savefig(stream, format="png", dpi=150)
    pyplot.close(figure)


def _draw_lengths(analysis: Analysis, axes: Any) -> None:
    edges = sorted({edge for one in analysis.datasets.values() for edge in one.lengths.histogram})
    for name, one in analysis.datasets.items():
        shares = [100 * one.lengths.histogram.get(edge, 0) / one.lengths.num_sequences for edge in edges]
        axes.plot(range(len(edges)), shares, marker="o", markersize=3, label=name)
    axes.set_xticks(range(len(edges)), [_range_below(edge) for edge in edges], rotation=60)
    axes.set_xlabel("tokens a sequence")
    axes.set_ylabel("sequences (%)")
    axes.grid(alpha=0.3)


def _draw_cosine(analysis: Analysis, axes: Any) -> None:
    _draw_estimates(analysis, axes, COSINE_DISTANCE, "mean cosine distance", "more")


def _draw_determinant(analysis: Analysis, axes: Any) -> None:
    _draw_estimates(analysis, axes, DETERMINANT_DISTANCE, "log-determinant distance (nats)", "less")


def _draw_estimates(analysis: Analysis, axes: Any, measure: str, title: str, better: str) -> None:
    estimates = [one.sampled[measure] for one in analysis.datasets.values()]
    for place, estimate in enumerate(estimates):
        axes.errorbar(place, estimate.value, yerr=2 * estimate.standard_error, fmt="o", capsize=4)
    axes.set_xticks(range(len(estimates)), analysis.datasets, rotation=30)
    axes.set_xlim(-0.5, len(estimates) - 0.5)
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel(f"{better} is more diverse")
    axes.grid(alpha=0.3)


def _range_below(edge: int) -> str:
    """The lengths from half a power of two to below it."""
    first, last = edge // 2, edge - 1
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def _draw_domains(analysis: Analysis, axes: Any) -> None:
    totals: dict[str, int] = {}
    for one in analysis.datasets.values():
        for domain, tokens in one.origin.tokens.items():
            totals[domain] = totals.get(domain, 0) + tokens
    domains = sorted(totals, key=lambda domain: -totals[domain])[:MOST_DOMAINS]
    height = 0.8 / len(analysis.datasets)
    for place, (name, one) in enumerate(analysis.datasets.items()):
        shares = [100 * one.origin.tokens.get(domain, 0) / max(1, one.lengths.num_tokens) for domain in domains]
        axes.barh(np.arange(len(domains)) + place * height, shares, height, label=name)
    labels = [domain if domain != NO_DOMAIN else "(none)" for domain in domains]
    axes.set_yticks(np.arange(len(domains)) + 0.4 - height / 2, labels)
    axes.invert_yaxis()
    axes.set_xlabel("share of tokens (%)")
