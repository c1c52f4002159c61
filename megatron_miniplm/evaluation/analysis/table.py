"""An analysis for people and for scripts."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from megatron_miniplm.evaluation.analysis.diversity import RIDGE
from megatron_miniplm.evaluation.analysis.exact import PERCENTILES
from megatron_miniplm.evaluation.analysis.measure import (
    COSINE_DISTANCE,
    DETERMINANT_DISTANCE,
    NUM_PARTS,
    Analysis,
    Estimate,
    Measures,
)
from megatron_miniplm.evaluation.analysis.scan import NGRAM_TOKENS
from megatron_miniplm.evaluation.analysis.vocabulary import COVERED_SHARE
from megatron_miniplm.indexed.pieces import NO_DOMAIN
from megatron_miniplm.progress import scaled
from megatron_miniplm.text_table import aligned

MOST_DOMAINS = 30
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
