"""The report on disk: selection -> `report.html` and its plots."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_miniplm.artifacts.atomic import atomic_output, write_text
from megatron_miniplm.artifacts.directory_lock import sole_writer
from megatron_miniplm.artifacts.manifest import manifest_path
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.selection.attributes import collect_attributes
from megatron_miniplm.selection.ranks import OneProcess
from megatron_miniplm.selection.report.excerpts import Excerpt, ExcerptReader
from megatron_miniplm.selection.report.opening import ReportedSelection, require_same_corpus
from megatron_miniplm.selection.report.origins import Origins, collect_origins, sidecars_of
from megatron_miniplm.selection.report.page import Findings, report_page
from megatron_miniplm.selection.report.plots import Plot, draw_plots, require_matplotlib
from megatron_miniplm.selection.report.tally import Tally, TallyPass

REPORT = "report.html"
#: Texts make most of the page.
MAX_EXAMPLES = 50
_SCRATCH = ".scratch-"


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
        encoder: decodes examples whose original text is not to be had.

    Raises:
        InputError: there is no matplotlib, a selection is of another corpus, or what it was made from is gone.
        MiniPLMError: scores, corpora or the selection have changed or are damaged.
    """
    if not 0 <= num_examples <= MAX_EXAMPLES:
        raise InputError(f"--examples {num_examples} must lie between 0 and {MAX_EXAMPLES}")
    require_matplotlib()
    others = [Selection.open(directory) for directory in compared]
    reported = ReportedSelection.open(selection_dir)
    for other in others:
        require_same_corpus(reported.selection, other)
    with sole_writer(output_dir):
        if manifest_path(output_dir).exists():
            raise InputError(f"{output_dir} holds an artifact with a manifest: give the report another --output")
        _remove_killed(output_dir)
        tally = _tally(reported, others, num_examples, output_dir)
        for corpus in reported.corpus.corpora:
            corpus.forget_pages()
        lowest = [value for value in reported.lowest_values if value is not None]
        plots = draw_plots(tally, reported.rule.measure, lowest)
        findings = Findings(
            reported=reported,
            tally=tally,
            origins=_origins(reported),
            excerpts=_excerpts(reported, tally, encoder),
            overlaps={str(other.directory): overlap for other, overlap in zip(others, tally.overlaps, strict=True)},
            plots=plots,
        )
        _publish(output_dir, report_page(findings), plots)
    return tally


def _remove_killed(output_dir: Path) -> None:
    """Scratch directories that killed runs have left."""
    for stale in output_dir.glob(f"{_SCRATCH}*"):
        shutil.rmtree(stale, ignore_errors=True)


def _tally(reported: ReportedSelection, others: Sequence[Selection], num_examples: int, output_dir: Path) -> Tally:
    rule, corpus = reported.rule, reported.corpus
    with _scratch(output_dir) as scratch:
        attributes = collect_attributes(
            corpus.corpora,
            scratch,
            with_domains=rule.needs_domains,
            with_bytes=rule.measure.reduction == "bits-per-byte",
            seen=reported.seen,
            ranks=OneProcess(),
        )
        with Progress(corpus.num_sequences, " sequences", title="reading scores") as progress:
            return TallyPass(reported, attributes, others, num_examples).run(progress.advance)


def _origins(reported: ReportedSelection) -> Origins:
    corpora = reported.corpus.corpora
    sidecars = sidecars_of(corpora)
    num_rows = sum(sidecar.num_pieces for sidecar in sidecars if sidecar is not None)
    with Progress(num_rows, " passages", title="reading sidecars") as progress:
        return collect_origins(corpora, reported.selection.prefixes, sidecars, progress.advance)


def _excerpts(reported: ReportedSelection, tally: Tally, encoder: TextEncoder | None) -> dict[str, list[Excerpt]]:
    reader = ExcerptReader(reported.corpus, encoder)
    found: dict[str, list[Excerpt]] = {}
    with Progress(sum(map(len, tally.examples.values())), " examples", title="reading texts") as progress:
        for group, examples in tally.examples.items():
            found[group] = []
            for example in examples:
                found[group].append(reader.read(example))
                progress.advance(1)
    return found


def _publish(output_dir: Path, page: str, plots: Sequence[Plot]) -> None:
    """Write the plots and, last, the page."""
    for plot in plots:
        with atomic_output(output_dir / f"{plot.name}.png") as stream:
            stream.write(plot.light)
    write_text(output_dir / REPORT, page)


@contextmanager
def _scratch(output_dir: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=output_dir, ignore_cleanup_errors=True) as directory:
        yield Path(directory)
