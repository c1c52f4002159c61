"""The report of a selection: one HTML page and its plots.

Everything that comes from the data passes through Jinja's autoescaping, with control characters made visible first, and
never into a script or a style. The policy in the head allows the one script by its hash, and nothing is loaded.
"""

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from markupsafe import Markup

from megatron_miniplm.artifacts.atomic import atomic_output, write_text
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.manifest import manifest_path
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.reports.histograms import RATIOS, Counts, what_if
from megatron_miniplm.reports.origins import Excerpt, Origins, collect_origins, read_excerpts
from megatron_miniplm.reports.plots import Plot, draw_plots, require_matplotlib
from megatron_miniplm.reports.reopening import ReopenedSelection, require_same_corpus
from megatron_miniplm.reports.tally import Tally, TallyPass
from megatron_miniplm.runtime.progress import Progress

REPORT = "report.html"
#: Texts make up most of the page.
MAX_EXAMPLES = 50
#: Of domains, sources, prefixes and inputs; smaller ones share one line.
MAX_ROWS = 200
PAPER_NEGATIVE_FRACTION = 0.063
_MAX_NAME_CHARACTERS = 200
_SCRATCH = ".scratch-"
_COUNT_COLUMNS = ("sequences", "kept", "share", "tokens", "kept tokens", "share of tokens")
#: Control characters are errors in a page, or hide text: show pictures of them instead.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)} | {13: None, 127: 0x2421}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def write_report(
    selection_dir: Path,
    output_dir: Path,
    *,
    num_examples: int = 10,
    compared: Sequence[Path] = (),
    encoder: TextEncoder | None = None,
) -> Tally:
    """Write the report of a selection; files of the same names are replaced.

    Args:
        num_examples: of each kind, at most MAX_EXAMPLES.
        compared: other selections of the same corpus.
        encoder: decodes examples whose original text is gone.

    Raises:
        InputError: matplotlib is missing, a selection is of another corpus, or what it was made from is gone.
        MiniPLMError: scores, corpora or the selection have changed or are damaged.
    """
    if not 0 <= num_examples <= MAX_EXAMPLES:
        raise InputError(f"--examples {num_examples} must lie between 0 and {MAX_EXAMPLES}")
    require_matplotlib()
    others = [Selection.open(directory) for directory in compared]
    reopened = ReopenedSelection.of(Selection.open(selection_dir))
    require_same_corpus(reopened.selection, others)
    with sole_writer(output_dir):
        if manifest_path(output_dir).exists():
            raise InputError(f"{output_dir} holds an artifact with a manifest: give the report another --output")
        for stale in output_dir.glob(f"{_SCRATCH}*"):  # of killed runs
            shutil.rmtree(stale, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=output_dir, ignore_cleanup_errors=True) as scratch:
            tally_pass = TallyPass(reopened, reopened.attributes(Path(scratch)), others, num_examples)
            with Progress(reopened.corpus.num_sequences, " sequences", title="reading scores") as progress:
                tally = tally_pass.run(progress.advance)
        for corpus in reopened.corpus.corpora:
            corpus.forget_pages()
        lowest = [value for value in reopened.lowest_values if value is not None]
        findings = Findings(
            reopened=reopened,
            tally=tally,
            origins=collect_origins(reopened),
            excerpts=read_excerpts(reopened, tally.examples, encoder),
            overlaps={str(other.directory): overlap for other, overlap in zip(others, tally.overlaps, strict=True)},
            plots=draw_plots(tally.histograms, lowest),
        )
        page = report_page(findings)
        for plot in findings.plots:
            with atomic_output(output_dir / f"{plot.name}.png") as stream:
                stream.write(plot.light)
        write_text(output_dir / REPORT, page)
    return tally


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What the page shows.

    Attributes:
        excerpts: by group of examples.
        overlaps: by the name of the other selection.
    """

    reopened: ReopenedSelection
    tally: Tally
    origins: Origins
    excerpts: Mapping[str, Sequence[Excerpt]]
    overlaps: Mapping[str, Counts]
    plots: Sequence[Plot]


class Cell(NamedTuple):
    """A cell with a number: how it reads, and what it sorts by. Other cells are names, as plain strings."""

    text: str
    number: float


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the page; `last` is a row that stays at the end."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    last: Sequence[str | Cell] = ()
    is_sortable: bool = False


def count(value: int) -> Cell:
    return Cell(f"{value:,}", int(value))


def share(part: float, whole: float) -> Cell:
    """A percentage; empty if the whole is 0."""
    return Cell(f"{part / whole:.1%}" if whole else "", float(part / whole) if whole else -1)


def decimal(value: float | None) -> Cell:
    if value is None:
        return Cell("none", float("-inf"))
    return Cell(f"{value:.4f}".replace("-", "\N{MINUS SIGN}"), float(value))


def visible(value: Any) -> Any:
    """Text with its control characters shown as pictures of them; other values as they are."""
    return value.translate(_VISIBLE) if isinstance(value, str) else value


def cut(name: str) -> str:
    """A name, without its middle if it is long."""
    half = _MAX_NAME_CHARACTERS // 2
    return name if len(name) <= _MAX_NAME_CHARACTERS else f"{name[:half]}…{name[-half:]}"


def template(name: str) -> jinja2.Template:
    """A template of the page, with what all of them use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cut": cut,
        "decimal": lambda value: decimal(value).text,
        "count": lambda value: f"{value:,}",
        "data_uri": lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}",
    }
    return environment.get_template(name)


def render_page(title: str, **found: Any) -> str:
    """Fill in the template of the page."""
    style, script = (
        (Path(__file__).parent / "templates" / name).read_text("utf-8") for name in ("report.css", "report.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = template("report.html").render(
        title=title, style=Markup(style), script=Markup(script), script_digest=digest, **found
    )
    return f"{page}\n"


def report_page(findings: Findings) -> str:
    """The page of what was found."""
    reopened, tally, origins = findings.reopened, findings.tally, findings.origins
    thresholds = {}
    if reopened.rule.per_domain and reopened.rule.sampling == "top":
        names = [threshold["domain"] for threshold in reopened.selection.summary["thresholds"]]
        thresholds = dict(zip(names, reopened.lowest_values, strict=True))
    return render_page(
        f"Report of {reopened.selection.directory.name}",
        rule=reopened.rule,
        histograms=tally.histograms,
        has_sequences=bool(tally.prefixes.sequences.any()),
        num_eligible=tally.num_eligible,
        headline=_headline(findings),
        outside=_num_outside(tally),
        plots=findings.plots,
        ratios=_ratios(tally),
        overlaps=_overlaps(findings),
        prefixes=_prefixes(findings),
        domains=_named_counts("domain", origins.domains, thresholds) if set(origins.domains) - {""} else None,
        sources=_named_counts("source", origins.sources, {}) if origins.sources else None,
        without_sidecar=origins.without_sidecar,
        lengths=_lengths(tally.lengths),
        excerpts=findings.excerpts,
        has_thresholds=bool(reopened.lowest_values),
        selection=reopened.selection,
        max_inputs=MAX_ROWS + 2,
        short_hex=SHORT_HEX,
    )


def _headline(findings: Findings) -> list[tuple[str, str]]:
    """Large numbers, and what each one is."""
    reopened, histograms, counts = findings.reopened, findings.tally.histograms, findings.tally.prefixes
    summary, lowest = reopened.selection.summary, reopened.lowest_values
    numbers = []
    for unit, kept_P, all_P in (
        ("sequences", counts.kept_sequences, counts.sequences),
        ("tokens", counts.kept_tokens, counts.tokens),
    ):
        kept, total = int(kept_P.sum()), int(all_P.sum())
        numbers.append((f"{kept:,}", f"{unit} kept, {share(kept, total).text} of {total:,}"))
    known = [value for value in lowest if value is not None]
    if len(lowest) > 1:
        span = " to ".join(decimal(value).text for value in (min(known), max(known))) if known else "none"
        numbers.append((span, f"thresholds of {len(known):,} domains, {histograms.unit}"))
    elif lowest:
        numbers.append((decimal(lowest[0]).text, f"threshold, {histograms.unit}"))
    mean, kept_mean = (decimal(summary[key]).text for key in ("mean_value", "mean_kept_value"))
    numbers.append((kept_mean, f"mean {histograms.what}: {mean} of all, {kept_mean} of the kept"))
    if reopened.rule.measure.is_difference:
        paper = f"negative differences (the paper: {PAPER_NEGATIVE_FRACTION:.1%})"
        numbers.append((f"{summary['negative_fraction']:.1%}", paper))
    return numbers


def _num_outside(tally: Tally) -> tuple[int, int]:
    """Sequences outside of the histogram of values, and of those of NLLs."""
    values, nll_TRK = tally.histograms.values.sequences, tally.histograms.nll_TRK
    inner_TRK = nll_TRK[tuple(slice(1, -1) if size > 1 else slice(None) for size in nll_TRK.shape[:2])]
    return int(values[0] + values[-1]), int(nll_TRK.sum() - inner_TRK.sum())


def _ratios(tally: Tally) -> Table:
    rows = []
    for ratio in RATIOS:
        found = what_if(tally.histograms, tally.num_eligible, ratio)
        negative = found.negative_fraction
        row = [Cell(f"{ratio:.0%}", ratio), decimal(found.threshold), count(found.num_sequences)]
        row += [count(found.num_tokens), decimal(found.mean_value)]
        if tally.histograms.measure.is_difference:
            row.append(share(0, 0) if negative is None else share(negative, 1))
        rows.append(row)
    columns = ["ratio", "threshold", "kept", "kept tokens", f"mean {tally.histograms.what}", "negative"]
    return Table(columns=columns[: len(rows[0])], rows=rows)


def _overlaps(findings: Findings) -> Table | None:
    counts, rows = findings.tally.prefixes, list[list[str | Cell]]()
    for label, overlap in findings.overlaps.items():
        for unit, kept_P, other_1, common_1 in (
            ("sequences", counts.kept_sequences, overlap.sequences, overlap.kept_sequences),
            ("tokens", counts.kept_tokens, overlap.tokens, overlap.kept_tokens),
        ):
            kept, other, common = int(kept_P.sum()), int(other_1[0]), int(common_1[0])
            shares = [share(common, whole) for whole in (kept, other, kept + other - common)]
            rows.append([label, unit, count(other), count(common), *shares])
    columns = ("selection", "unit", "kept there", "in both", "share of this one", "share of that one", "Jaccard")
    return Table(columns=columns, rows=rows) if rows else None


def _prefixes(findings: Findings) -> Table:
    counts, what = findings.tally.prefixes, findings.tally.histograms.what
    names = [prefix.name for prefix in findings.reopened.selection.prefixes]
    order = sorted(range(len(names)), key=lambda place: -int(counts.sequences[place]))
    shown, rest = sorted(order[:MAX_ROWS]), order[MAX_ROWS:]

    def mean(total: float, number: int) -> Cell:
        return decimal(float(total / number) if number else None)

    rows: list[list[str | Cell]] = [
        [
            names[place],
            *_count_cells(counts, [place]),
            mean(counts.value_sums[place], counts.num_scored[place]),
            mean(counts.kept_value_sums[place], counts.num_kept_scored[place]),
        ]
        for place in shown
    ]
    last: list[str | Cell] = [f"{len(rest):,} more", *_count_cells(counts, rest), "", ""] if rest else []
    columns = ("prefix", *_COUNT_COLUMNS, f"mean {what}", "mean of the kept")
    return Table(columns=columns, rows=rows, last=last, is_sortable=True)


def _named_counts(what: str, counts_of: Mapping[str, Counts], thresholds: Mapping[str, float | None]) -> Table:
    """Counts by name, the largest first; many small ones share one line."""
    names = sorted(counts_of, key=lambda label: (-int(counts_of[label].sequences[0]), label))
    shown, rest = names[:MAX_ROWS], names[MAX_ROWS:]
    rows: list[list[str | Cell]] = [
        [
            label or f"(no {what})",
            *_count_cells(counts_of[label], [0]),
            *([decimal(thresholds.get(label))] if thresholds else []),
        ]
        for label in shown
    ]
    last: list[str | Cell] = []
    if rest:
        total = Counts.zeros(1)
        for label in rest:
            total.add(counts_of[label])
        last = [f"{len(rest):,} more", *_count_cells(total, [0]), *([""] if thresholds else [])]
    columns = (what, *_COUNT_COLUMNS, *(["threshold"] if thresholds else []))
    return Table(columns=columns, rows=rows, last=last, is_sortable=True)


def _lengths(lengths: Counts) -> Table:
    rows = []
    for digits in np.flatnonzero(lengths.sequences).tolist():
        low, high = (1 << digits) >> 1, (1 << digits) - 1
        label = f"{low:,}" if low >= high else f"{low:,} to {high:,}"
        rows.append([Cell(label, low), *_count_cells(lengths, [digits])])
    return Table(columns=("tokens", *_COUNT_COLUMNS), rows=rows, is_sortable=True)


def _count_cells(counts: Counts, places: Sequence[int]) -> list[Cell]:
    cells = []
    for all_C, kept_C in ((counts.sequences, counts.kept_sequences), (counts.tokens, counts.kept_tokens)):
        total, kept = int(all_C[list(places)].sum()), int(kept_C[list(places)].sum())
        cells += [count(total), count(kept), share(kept, total)]
    return cells
