"""What a report has found -> one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.selection.difference import UNITS
from megatron_miniplm.selection.report import html
from megatron_miniplm.selection.report.examples import JUST_DROPPED, JUST_KEPT, LEAST_GAINED, MOST_GAINED
from megatron_miniplm.selection.report.excerpts import Excerpt
from megatron_miniplm.selection.report.html import Cell, count, decimal, share, table, words
from megatron_miniplm.selection.report.opening import ReportedSelection
from megatron_miniplm.selection.report.origins import Origins
from megatron_miniplm.selection.report.plots import Plot
from megatron_miniplm.selection.report.tally import Counts, Overlap, Tally
from megatron_miniplm.selection.report.what_if import RATIOS, what_if
from megatron_miniplm.selection.report.wording import in_words

#: Of domains, sources and prefixes; what is smaller shares one line.
MAX_ROWS = 200
PAPER_NEGATIVE_FRACTION = 0.063
_COUNT_COLUMNS = ("sequences", "kept", "share", "tokens", "kept tokens", "share of tokens")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the page shows.

    Attributes:
        excerpts: by group of examples.
        overlaps: by the name of the other selection.
    """

    reported: ReportedSelection
    tally: Tally
    origins: Origins
    excerpts: Mapping[str, Sequence[Excerpt]]
    overlaps: Mapping[str, Overlap]
    plots: Sequence[Plot]

    @property
    def unit(self) -> str:
        return UNITS[self.reported.rule.measure.reduction]

    @property
    def what(self) -> str:
        """Name of what is ranked by."""
        measure = self.reported.rule.measure
        return "difference" if measure.is_difference else measure.expression


def report_page(findings: Findings) -> str:
    """The page."""
    sections = [
        ("scores", "Scores", _scores(findings)),
        ("what-if", "Other ratios", _what_if(findings)),
        ("prefixes", "By prefix", _prefixes(findings)),
        ("domains", "By domain", _domains(findings)),
        ("sources", "By source", _sources(findings)),
        ("lengths", "By length", _lengths(findings)),
    ]
    if findings.overlaps:
        sections.insert(2, ("overlap", "Other selections", _overlaps(findings)))
    sections.append(("examples", "Examples", _examples(findings)))
    sections.append(("origin", "Made from", _made_from(findings)))
    return html.page(f"Report of {findings.reported.directory.name}", sections, _head(findings))


def _head(findings: Findings) -> str:
    reported, counts = findings.reported, findings.tally.prefixes
    summary = reported.selection.summary
    kept, total = int(counts.kept_sequences.sum()), int(counts.sequences.sum())
    kept_tokens, tokens = int(counts.kept_tokens.sum()), int(counts.tokens.sum())
    numbers = [
        (f"{kept:,}", f"sequences kept, {share(kept, total).markup} of {total:,}"),
        (f"{kept_tokens:,}", f"tokens kept, {share(kept_tokens, tokens).markup} of {tokens:,}"),
    ]
    numbers += _threshold_numbers(findings)
    means = " of all, ".join(decimal(summary[key]).markup for key in ("mean_value", "mean_kept_value"))
    numbers.append((decimal(summary["mean_kept_value"]).markup, f"mean {findings.what}: {means} of the kept"))
    if reported.rule.measure.is_difference:
        paper = f"negative differences (the paper: {PAPER_NEGATIVE_FRACTION:.1%})"
        numbers.append((f"{summary['negative_fraction']:.1%}", paper))
    boxes = "".join(f"<div><b>{html.text(big)}</b><span>{html.text(small)}</span></div>" for big, small in numbers)
    return f'<p class="lead">{html.text(in_words(reported.rule))}</p>\n<div class="numbers">{boxes}</div>'


def _threshold_numbers(findings: Findings) -> list[tuple[str, str]]:
    if not findings.reported.lowest_values:
        return []
    values = [value for value in findings.reported.lowest_values if value is not None]
    if len(findings.reported.lowest_values) > 1:
        span = " to ".join(decimal(value).markup for value in (min(values), max(values))) if values else "none"
        return [(span, f"thresholds of {len(values):,} domains, {findings.unit}")]
    return [(decimal(values[0] if values else None).markup, f"threshold, {findings.unit}")]


def _scores(findings: Findings) -> str:
    if not int(findings.tally.prefixes.sequences.sum()):
        return "<p>There are no sequences.</p>"
    outside = int(findings.tally.nll_TRK.sum()) - int(_inner(findings.tally.nll_TRK).sum())
    num_values = findings.tally.values.sequences
    notes = []
    if num_outside := int(num_values[0] + num_values[-1]):
        notes.append(f"{num_outside:,} values lie outside the histogram of the {findings.what}.")
    if outside:
        notes.append(f"{outside:,} sequences lie outside the histograms of NLLs.")
    pictures = "".join(html.picture(plot.title, plot.light, plot.dark, plot.title) for plot in findings.plots)
    return f'<div class="plots">{pictures}</div><p class="soft">{html.text(" ".join(notes))}</p>'


def _inner(nll_TRK: np.ndarray) -> np.ndarray:
    return nll_TRK[tuple(slice(1, -1) if size > 1 else slice(None) for size in nll_TRK.shape[:2])]


def _prefixes(findings: Findings) -> str:
    tally = findings.tally
    names = [prefix.name for prefix in findings.reported.selection.prefixes]
    order = sorted(range(len(names)), key=lambda place: -int(tally.prefixes.sequences[place]))
    shown, rest = order[:MAX_ROWS], order[MAX_ROWS:]
    rows = [
        [
            words(names[place]),
            *_count_cells(tally.prefixes, [place]),
            decimal(_mean(tally.value_sum_P[place], tally.num_scored_P[place])),
            decimal(_mean(tally.kept_value_sum_P[place], tally.num_kept_scored_P[place])),
        ]
        for place in sorted(shown)
    ]
    columns = ("prefix", *_COUNT_COLUMNS, f"mean {findings.what}", "mean of the kept")
    last = [words(f"{len(rest):,} more"), *_count_cells(tally.prefixes, rest), *[words("")] * 2] if rest else []
    return table(columns, rows, sortable=True, last=last)


def _domains(findings: Findings) -> str:
    domains = findings.origins.domains
    if set(domains) <= {""}:
        return _without_sidecar(findings) + "<p>No sequence has a domain.</p>"
    thresholds = {}
    if findings.reported.rule.per_domain and findings.reported.rule.sampling == "top":
        names = [threshold["domain"] for threshold in findings.reported.thresholds]
        thresholds = dict(zip(names, findings.reported.lowest_values, strict=True))
    return _without_sidecar(findings) + _named_counts("domain", domains, thresholds)


def _sources(findings: Findings) -> str:
    if not findings.origins.sources:
        return _without_sidecar(findings)
    return _without_sidecar(findings) + _named_counts("source", findings.origins.sources, {})


def _without_sidecar(findings: Findings) -> str:
    missing = findings.origins.without_sidecar
    if not missing:
        return ""
    shown = ", ".join(html.name(prefix) for prefix in missing[:10])
    more = f" and {len(missing) - 10:,} more" if len(missing) > 10 else ""
    return (
        f'<p class="soft">Without a sidecar, which says where sequences come from, and not counted here: '
        f"{shown}{more}. Corpora that <code>miniplm preprocess-data</code> makes have one.</p>"
    )


def _named_counts(what: str, counts_of: Mapping[str, Counts], thresholds: Mapping[str, float | None]) -> str:
    """Counts by name, the largest first; many small ones in one line."""
    names = sorted(counts_of, key=lambda label: (-int(counts_of[label].sequences[0]), label))
    shown, rest = names[:MAX_ROWS], names[MAX_ROWS:]

    def row(label: str) -> list[Cell]:
        threshold = [decimal(thresholds.get(label))] if thresholds else []
        return [words(label or f"(no {what})"), *_count_cells(counts_of[label], [0]), *threshold]

    columns = (what, *_COUNT_COLUMNS, *(["threshold"] if thresholds else []))
    last: list[Cell] = []
    if rest:
        total = Counts.zeros(1)
        for label in rest:
            total.add(counts_of[label])
        last = [words(f"{len(rest):,} more"), *_count_cells(total, [0]), *([words("")] if thresholds else [])]
    return table(columns, [row(label) for label in shown], sortable=True, last=last)


def _lengths(findings: Findings) -> str:
    lengths = findings.tally.lengths
    rows = []
    for digits in np.flatnonzero(lengths.sequences).tolist():
        low, high = (1 << digits) >> 1, (1 << digits) - 1
        label = f"{low:,}" if low >= high else f"{low:,} to {high:,}"
        rows.append([Cell(markup=label, number=low), *_count_cells(lengths, [digits])])
    return table(("tokens", *_COUNT_COLUMNS), rows, sortable=True)


def _what_if(findings: Findings) -> str:
    tally, axis = findings.tally, findings.tally.axes.value
    is_difference = findings.reported.rule.measure.is_difference
    rows = []
    for ratio in RATIOS:
        found = what_if(tally, ratio)
        negative = found.negative_fraction
        row = [Cell(markup=f"{ratio:.0%}", number=ratio), decimal(found.threshold), count(found.num_sequences)]
        row += [count(found.num_tokens), decimal(found.mean_value)]
        rows.append([*row, share(negative, 1) if negative is not None else share(0, 0)] if is_difference else row)
    columns = ["ratio", "threshold", "kept", "kept tokens", f"mean {findings.what}", "negative"]
    note = (
        f"What the top set of the {tally.num_eligible:,} sequences that take part would be at other ratios of "
        f"sequences. Read off a histogram of {axis.num_bins:,} bins of {axis.width:.2g} {findings.unit} and "
        "interpolated within one bin: thresholds are right to that width, tokens and means to one bin's content."
    )
    return f"<p>{html.text(note)}</p>" + table(columns[: len(rows[0])], rows)


def _overlaps(findings: Findings) -> str:
    counts = findings.tally.prefixes
    rows = []
    for label, overlap in findings.overlaps.items():
        for unit, kept, other, common in (
            ("sequences", int(counts.kept_sequences.sum()), overlap.sequences, overlap.common_sequences),
            ("tokens", int(counts.kept_tokens.sum()), overlap.tokens, overlap.common_tokens),
        ):
            cells = [count(other), count(common), share(common, kept), share(common, other)]
            rows.append([words(label), words(unit), *cells, share(common, kept + other - common)])
    columns = ("selection", "unit", "kept there", "in both", "share of this one", "share of that one", "Jaccard")
    return table(columns, rows)


def _examples(findings: Findings) -> str:
    what = findings.what
    headings = {
        MOST_GAINED: ("Most gained", f"Kept, with the greatest {what}."),
        LEAST_GAINED: ("Least gained", f"The lowest {what} of all: often noise that no model should learn."),
        JUST_KEPT: ("Just kept", "Kept, and nearest to the threshold."),
        JUST_DROPPED: ("Just dropped", "Dropped, and nearest to the threshold."),
    }
    columns = {}
    for group, (heading, note) in headings.items():
        cards = "".join(example_card(excerpt, what) for excerpt in findings.excerpts.get(group, ()))
        columns[group] = (
            f'<div><h3>{html.text(heading)}</h3><p class="soft">{html.text(note)}</p>{cards or "<p>None.</p>"}</div>'
        )
    markup = f'<div class="pair">{columns[MOST_GAINED]}{columns[LEAST_GAINED]}</div>'
    if not findings.reported.lowest_values:
        return markup + '<p class="soft">A sample has no threshold that sequences could lie near.</p>'
    return markup + f'<div class="pair">{columns[JUST_KEPT]}{columns[JUST_DROPPED]}</div>'


def example_card(excerpt: Excerpt, what: str) -> str:
    """One example, at most some 15 kB whatever the data are."""
    example = excerpt.example
    values = [(what, example.value), ("teacher", example.teacher), ("reference", example.reference)]
    state = "kept" if example.is_kept else "dropped"
    numbers = f'<span class="{state}">{state}</span>' + "".join(
        f"<span>{html.text(label)} <b>{decimal(value).markup}</b></span>"
        for label, value in values
        if value is not None
    )
    numbers += f"<span><b>{example.num_tokens:,}</b> tokens</span>"
    labels = [f"sequence {excerpt.index:,} of {html.name(excerpt.prefix)}"]
    labels += [f"domain {html.name(excerpt.domain)}"] if excerpt.domain else []
    labels += [f"id {html.name(excerpt.id)}"] if excerpt.id else []
    labels += [html.name(place) for place in excerpt.places[:3]]
    labels += [f"{len(excerpt.places) - 3:,} more passages"] if len(excerpt.places) > 3 else []
    labels += [html.text(excerpt.how)] if excerpt.how else []
    end = " …" if excerpt.is_cut else ""
    return (
        f"<article><header>{numbers}</header>"
        f'<div class="place">{" · ".join(labels)}</div>'
        f'<pre dir="auto">{html.text(excerpt.text)}{end}</pre></article>'
    )


def _made_from(findings: Findings) -> str:
    selection = findings.reported.selection
    pairs = [
        (
            "selection",
            f"<code>{html.name(str(findings.reported.directory))}</code> {_short(selection.manifest.fingerprint)}",
        )
    ]
    pairs += [
        (parent.role, f"<code>{html.name(parent.path)}</code> {_short(parent.fingerprint)}")
        for parent in selection.manifest.inputs[: MAX_ROWS + 2]
    ]
    if (num_more := len(selection.manifest.inputs) - MAX_ROWS - 2) > 0:
        pairs.append(("", f"{num_more:,} more"))
    pairs += [(key, html.name(_setting(value))) for key, value in selection.manifest.settings.items()]
    return html.facts(pairs)


def _setting(value: Any) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _short(fingerprint: str) -> str:
    return f'<code title="{html.attribute(fingerprint)}">[{html.text(fingerprint[:SHORT_HEX])}]</code>'


def _count_cells(counts: Counts, places: Sequence[int]) -> list[Cell]:
    sequences, tokens, kept, kept_tokens = (
        int(column[list(places)].sum())
        for column in (counts.sequences, counts.tokens, counts.kept_sequences, counts.kept_tokens)
    )
    return [
        count(sequences),
        count(kept),
        share(kept, sequences),
        count(tokens),
        count(kept_tokens),
        share(kept_tokens, tokens),
    ]


def _mean(total: float, number: int) -> float | None:
    return float(total / number) if number else None
