"""An analysis for people and for scripts: text, JSON and a picture."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.evaluation.analysis.diversity import COVERED_SHARE, RIDGE
from megatron_miniplm.evaluation.analysis.exact import NGRAM_TOKENS, PERCENTILES
from megatron_miniplm.evaluation.analysis.measure import (
    COSINE_DISTANCE,
    DETERMINANT_DISTANCE,
    NUM_PARTS,
    Analysis,
    Estimate,
    Measures,
)
from megatron_miniplm.evaluation.plot import load_pyplot
from megatron_miniplm.indexed.pieces import NO_DOMAIN
from megatron_miniplm.runtime.progress import scaled
from megatron_miniplm.runtime.text_table import aligned

MOST_DOMAINS = 30
PLOTTED_DOMAINS = 12
_Row = tuple[str, list[str]]


def lines_of(analysis: Analysis) -> list[str]:
    """A column a data set, the first being the one that the others are compared with."""
    rows = [["", *analysis.datasets]]
    for title, block in (
        ("every sequence", _exact_rows(analysis)),
        ("every token", _scan_rows(analysis)),
        (_sample_title(analysis), _sample_rows(analysis)),
        ("share of sequences / of tokens, by domain", _domain_rows(analysis)),
    ):
        if block:
            rows += [[""], [title], *([f"  {label}", *cells] for label, cells in block)]
    return [*aligned(rows), "", *_notes(analysis)]


def as_json(analysis: Analysis) -> dict[str, Any]:
    return {
        "settings": asdict(analysis.settings),
        "sample": {
            "parts": NUM_PARTS,
            "sequences_a_part": analysis.part_sequences,
            "tokens_a_part": analysis.part_tokens,
            "sequences_of_a_determinant": analysis.determinant_sequences,
        },
        "embedding": analysis.embedding,
        "determinant_ridge": RIDGE,
        "held_out_ngram_tokens": NGRAM_TOKENS,
        "datasets": {name: _measures_as_json(one) for name, one in analysis.datasets.items()},
        "read_tokens": analysis.read_tokens,
        "seconds": analysis.seconds,
    }


def _measures_as_json(one: Measures) -> dict[str, Any]:
    lengths = asdict(one.lengths)
    percentiles = dict(zip(map(str, PERCENTILES), lengths.pop("percentiles"), strict=True))
    histogram = {str(edge): count for edge, count in lengths.pop("histogram").items()}
    return {
        "num_sequences": lengths.pop("num_sequences"),
        "num_tokens": lengths.pop("num_tokens"),
        "text_bytes": one.origin.text_bytes,
        "sequence_tokens": {
            "mean": one.lengths.mean,
            **lengths,
            "percentiles": percentiles,
            "histogram_by_power_of_two_above": histogram,
        },
        "domains": {
            domain: {"num_sequences": count, "num_tokens": one.origin.tokens[domain]}
            for domain, count in one.origin.sequences.items()
        },
        "scan": None if one.scan is None else asdict(one.scan),
        "sampled": {name: asdict(estimate) for name, estimate in one.sampled.items()},
    }


def _exact_rows(analysis: Analysis) -> list[_Row]:
    def row(label: str, cell: Callable[[Measures], str]) -> _Row:
        return label, [cell(one) for one in analysis.datasets.values()]

    def percentile(place: int) -> Callable[[Measures], str]:
        return lambda one: f"{one.lengths.percentiles[place]:,}"

    return [
        row("sequences", lambda one: f"{one.lengths.num_sequences:,}"),
        row("tokens", lambda one: f"{one.lengths.num_tokens:,}"),
        row("bytes of text a token", _bytes_a_token),
        row("tokens a sequence, mean", lambda one: f"{one.lengths.mean:,.1f}"),
        row("  shortest", lambda one: f"{one.lengths.shortest:,}"),
        *(row(f"  {percent} % have at most", percentile(place)) for place, percent in enumerate(PERCENTILES)),
        row("  longest", lambda one: f"{one.lengths.longest:,}"),
    ]


def _scan_rows(analysis: Analysis) -> list[_Row]:
    scans = [one.scan for one in analysis.datasets.values()]
    names = next((list(scan.held_out) for scan in scans if scan), [])
    rows = [
        ("copies, of sequences", [_share(scan.copies, scan.num_sequences) if scan else "-" for scan in scans]),
        ("copies, of tokens", [_share(scan.copied_tokens, scan.num_tokens) if scan else "-" for scan in scans]),
    ]
    for name in names:
        cells = [_share(*scan.held_out[name]) if scan else "-" for scan in scans]
        rows.append((f"{NGRAM_TOKENS}-grams of {name} in it", cells))
    return rows


def _sample_title(analysis: Analysis) -> str:
    return (
        f"sample: {NUM_PARTS} parts of {analysis.part_sequences:,} sequences, their first "
        f"{analysis.settings.max_tokens:,} tokens (standard error over parts)"
    )


def _sample_rows(analysis: Analysis) -> list[_Row]:
    """Vocabulary and diversity."""
    rows = {
        COSINE_DISTANCE: ("cosine distance of two", 4),
        DETERMINANT_DISTANCE: (f"log-det distance of {analysis.determinant_sequences:,}", 4),
        "distinct": (f"different, of {analysis.part_tokens:,} tokens", 0),
        "covering": (f"different in {COVERED_SHARE:.0%} of them", 0),
        "entropy_bits": ("entropy, bits a token", 3),
        "distinct_2": ("different pairs a pair", 4),
    }
    return [
        (label, [_with_error(one.sampled[name], decimals) for one in analysis.datasets.values()])
        for name, (label, decimals) in rows.items()
    ]


def _domain_rows(analysis: Analysis) -> list[_Row]:
    """The domains with most tokens in the first data set that has any."""
    tokens: dict[str, int] = {}
    for one in analysis.datasets.values():
        for domain, count in one.origin.tokens.items():
            tokens.setdefault(domain, count)
    shown = sorted(tokens, key=lambda domain: -tokens[domain])
    rows = []
    for domain in shown[:MOST_DOMAINS]:
        cells = []
        for one in analysis.datasets.values():
            sequences = _share(one.origin.sequences.get(domain, 0), one.lengths.num_sequences)
            in_tokens = _share(one.origin.tokens.get(domain, 0), one.lengths.num_tokens)
            cells.append(f"{sequences} / {in_tokens}" if one.origin.sequences else "-")
        rows.append((domain if domain != NO_DOMAIN else "(none)", cells))
    if len(shown) > MOST_DOMAINS:
        rows.append((f"and {len(shown) - MOST_DOMAINS} more", [""] * len(analysis.datasets)))
    return rows


def _notes(analysis: Analysis) -> list[str]:
    lines = [
        f"embedding: {analysis.embedding}",
        "cosine distance: mean of 1 - cos over all pairs; more is more diverse",
        "log-det distance: -ln det K / S in nats, after Wang et al. 2024 (arXiv 2402.02318); less is more diverse",
        "distances are comparable with those of the same embedding, sample and numbers of sequences only",
    ]
    left_out = [name for name, one in analysis.datasets.items() if one.scan is None]
    if left_out:
        limit = analysis.settings.max_scanned_tokens
        lines.append(f"not scanned, more than --scan-tokens {limit:,}: {', '.join(left_out)}")
    speed = scaled(analysis.read_tokens / max(analysis.seconds, 1e-9), " tokens")
    return [*lines, f"read {analysis.read_tokens:,} tokens in {analysis.seconds:.1f} s, {speed}/s"]


def _bytes_a_token(one: Measures) -> str:
    if one.origin.text_bytes is None or not one.lengths.num_tokens:
        return "-"
    return f"{one.origin.text_bytes / one.lengths.num_tokens:.3f}"


def _with_error(estimate: Estimate, decimals: int) -> str:
    error_decimals = max(decimals, 1) if estimate.standard_error < 10 else decimals
    return f"{estimate.value:,.{decimals}f} ({estimate.standard_error:,.{error_decimals}f})"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "-"


def plot_analysis(analysis: Analysis, path: Path) -> None:
    """Draw lengths, both measures of diversity with two standard errors, and shares of tokens by domain.

    Raises:
        InputError: matplotlib is missing.
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
    domains = sorted(totals, key=lambda domain: -totals[domain])[:PLOTTED_DOMAINS]
    height = 0.8 / len(analysis.datasets)
    for place, (name, one) in enumerate(analysis.datasets.items()):
        shares = [100 * one.origin.tokens.get(domain, 0) / max(1, one.lengths.num_tokens) for domain in domains]
        axes.barh(np.arange(len(domains)) + place * height, shares, height, label=name)
    labels = [domain if domain != NO_DOMAIN else "(none)" for domain in domains]
    axes.set_yticks(np.arange(len(domains)) + 0.4 - height / 2, labels)
    axes.invert_yaxis()
    axes.set_xlabel("share of tokens (%)")
