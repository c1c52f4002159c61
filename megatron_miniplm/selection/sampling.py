"""Difference sampling on disk: score stores -> indices, weights, refined views and a blend for Megatron."""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.data_args import require_readable, write_data_args
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint, digest_values
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import (
    TRAINING_DATA,
    Manifest,
    checksum_of,
    input_of,
    is_prefix,
    refuse_another,
)
from megatron_miniplm.artifacts.selections import ARRAYS, FORMAT_VERSION, SEEN, SELECTION
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.selection.candidates import Attributes, CandidateReader, collect_attributes
from megatron_miniplm.selection.difference import refuse_incomparable
from megatron_miniplm.selection.ranks import OneProcess, Ranks
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import (
    REFERENCE,
    Piece,
    ScoredCorpus,
    map_in_order,
)
from megatron_miniplm.selection.top import Ordered, Threshold, find_thresholds
from megatron_miniplm.selection.writing import Writer, Written, prefixes_of_rank

SCRATCH = ".scratch-"
#: Pieces of the corpus that tell where the threshold may lie, before all are read.
SAMPLED_PIECES = 16


def difference_sample(
    scores: dict[str, Path],
    output_dir: Path,
    rule: Rule,
    *,
    index_only: bool = False,
    seen_by_reference: str = "error",
    reference_data: Sequence[Path] = (),
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Keep what the rule says of a scored corpus; a collective call.

    Args:
        scores: directories of scores by role; `TEACHER` and `REFERENCE`, or those that the rule's expression names, or
            `PREDICTIONS` alone or beside both, which then may be sampled.
        output_dir: gets `selection.json`, `data_args.txt`, and per prefix indices, weights and a view.
        rule: what is kept.
        index_only: write no views; Megatron needs the patched dataset builder then.
        seen_by_reference: what to do with sequences that the reference model was trained on.
        reference_data: prefixes that it was trained on, beside those that its scores name.

    Returns:
        What `selection.json` holds; the same on all ranks.

    Raises:
        MiniPLMError: the stores are incomplete or of different corpora, a corpus has changed, the reference has seen
            what is scored, a value is NaN, or `output_dir` holds another selection.
    """
    if index_only and rule.repeat:
        raise InputError("--repeat-by-weight repeats sequences in views, --index-only writes none: give one of them")
    ranks = ranks or OneProcess()
    corpus = ScoredCorpus.open(scores)
    refuse_incomparable(corpus)
    _refuse_unscored(corpus)
    require_readable(*(corpus.prefixes if index_only else [output_dir]))
    corpus.open_in_background(prefixes_of_rank(corpus, ranks))
    seen = training_prefixes(corpus, reference_data) if seen_by_reference != "allow" else {}
    settings = {**rule.settings(), "index_only": index_only, "seen_by_reference": seen_by_reference}
    fingerprint = digest_values(
        "selection", [manifest.fingerprint for manifest in corpus.manifests.values()], settings, sorted(seen.values())
    )
    with _sole_writer(output_dir, ranks):
        refuse_another(output_dir, "selection", fingerprint)
        summary = _select(corpus, rule, output_dir, settings, seen, fingerprint, ranks)
        if ranks.rank == 0:
            _publish(output_dir, summary, fingerprint, settings, corpus, seen)
        ranks.gather(None)  # nobody leaves before all is there
    return summary


def _select(
    corpus: ScoredCorpus,
    rule: Rule,
    output_dir: Path,
    settings: dict[str, Any],
    seen: dict[Path, Fingerprint],
    fingerprint: Fingerprint,
    ranks: Ranks,
) -> dict[str, Any]:
    """Write arrays and views; returns what `selection.json` will hold."""
    with _scratch(output_dir, ranks) as scratch:
        attributes = _attributes(corpus, rule, scratch, seen, ranks)
        _refuse_seen(attributes, corpus, settings["seen_by_reference"])
        excludes_seen = settings["seen_by_reference"] == "exclude" and bool(seen)
        reader = CandidateReader(corpus, rule, attributes, excludes_seen=excludes_seen)
        thresholds = _thresholds(corpus, reader, rule, ranks)
        for position in prefixes_of_rank(corpus, ranks):
            corpus.corpus(position)
        ranks.gather(None)  # no prefix has changed, or nothing is written
        writer = Writer(
            corpus=corpus, reader=reader, rule=rule, thresholds=thresholds, output_dir=output_dir, ranks=ranks
        )
        written = writer.write_arrays()
        if not settings["index_only"]:
            writer.write_views(written, scratch, {**settings, "selection": fingerprint[:SHORT_HEX]})
    return _summary(writer, written, attributes, settings)


def _attributes(
    corpus: ScoredCorpus, rule: Rule, scratch: Path, seen: dict[Path, Fingerprint], ranks: Ranks
) -> Attributes:
    with_bytes = rule.measure.reduction == "bits-per-byte"
    if not (rule.needs_domains or with_bytes or seen):
        return Attributes(directory=scratch)  # the prefixes need not be open yet
    attributes = collect_attributes(
        corpus.corpora, scratch, with_domains=rule.needs_domains, with_bytes=with_bytes, seen=seen, ranks=ranks
    )
    if rule.per_domain and not any(attributes.domains):
        raise InputError(
            "--per-domain: no sequence of the corpus has a domain, so that the selection would be the plain one; "
            "preprocess with --domain-key, or leave --per-domain out"
        )
    return attributes


def _thresholds(corpus: ScoredCorpus, reader: CandidateReader, rule: Rule, ranks: Ranks) -> list[Threshold]:
    """The last kept sequence of each group; each rank looks at a part of the corpus."""
    if rule.threshold is not None:
        return [Threshold.of_value(rule.threshold)] * reader.num_groups
    pieces = corpus.pieces()
    mine = pieces[len(pieces) * ranks.rank // ranks.size : len(pieces) * (ranks.rank + 1) // ranks.size]
    num_sequences = sum(piece.size for piece in mine)

    def ordered(pieces: Sequence[Piece]) -> Iterator[Ordered]:
        return map_in_order(lambda piece: reader.ordered(reader.read(piece)), pieces)

    def stream() -> Iterator[Ordered]:
        with Progress(num_sequences, " sequences", visible=ranks.rank == 0, title="ranking") as progress:
            for part in ordered(mine):
                yield part
                progress.advance(len(part.ids_N))

    sampled = mine[:: max(1, len(mine) // SAMPLED_PIECES)] if len(mine) > SAMPLED_PIECES else []
    num_sampled = sum(ranks.gather(sum(piece.size for piece in sampled)))
    return find_thresholds(
        stream,
        rule.targets,
        num_groups=reader.num_groups,
        ranks=ranks,
        sample=(lambda: ordered(sampled)) if num_sampled else None,
        sampled_fraction=num_sampled / corpus.num_sequences,
    )


def _refuse_unscored(corpus: ScoredCorpus) -> None:
    role, store = next(iter(corpus.stores.items()))
    if corpus.manifests[role].counts["num_tokens"] == 0:
        raise InputError(f"{store.directory} has no scored tokens: the corpus has no sequence of two tokens or more")


def _refuse_seen(attributes: Attributes, corpus: ScoredCorpus, seen_by_reference: str) -> None:
    num_seen = sum(attributes.num_seen_P)
    if num_seen and seen_by_reference == "error":
        raise InputError(
            f"{num_seen:,} of {corpus.num_sequences:,} scored sequences were training data of the reference model, "
            "which knows them too well: give --seen-by-reference exclude to leave them out, or allow to rank them all"
        )


def _summary(writer: Writer, written: Written, attributes: Attributes, settings: dict[str, Any]) -> dict[str, Any]:
    """What `selection.json` holds."""
    return {
        "format_version": FORMAT_VERSION,
        **settings,
        **written.statistics(),
        "num_sequences": writer.corpus.num_sequences,
        "num_seen_by_reference": sum(attributes.num_seen_P),
        "thresholds": _described(writer.thresholds, attributes, writer.rule),
        "prefixes": written.entries(writer.corpus, writer.output_dir),
    }


def _described(thresholds: list[Threshold], attributes: Attributes, rule: Rule) -> list[dict[str, Any]]:
    """`thresholds` of `selection.json`; `key` is exact, `value` for people."""
    names = attributes.domains if rule.per_domain else (None,)
    return [
        {
            "domain": name,
            "value": threshold.value if math.isfinite(threshold.value) else None,
            "key": f"{threshold.key:016x}",
            "sequence": threshold.sequence,
        }
        for name, threshold in zip(names, thresholds, strict=True)
    ]


def _publish(
    output_dir: Path,
    summary: dict[str, Any],
    fingerprint: Fingerprint,
    settings: dict[str, Any],
    corpus: ScoredCorpus,
    seen: dict[Path, Fingerprint],
) -> None:
    """Write the blend, `selection.json` and, last, the manifest."""
    entries = summary["prefixes"]
    blend = []
    for entry, source in zip(entries, corpus.prefixes, strict=True):
        prefix = output_dir / entry["view"] if entry["view"] else source
        num_tokens = IndexedCorpus.open(prefix).num_tokens if settings["repeat"] else entry["num_tokens"]
        blend.append((num_tokens, prefix))
    write_data_args(output_dir, blend)
    write_json(output_dir / SELECTION, summary)
    names = [SELECTION, *(entry[what] for entry in entries for what in ARRAYS)]
    inputs = [
        input_of(role, store.directory, corpus.manifests[role].fingerprint, relative_to=output_dir)
        for role, store in corpus.stores.items()
    ]
    inputs += [
        input_of("corpus", prefix, found, relative_to=output_dir)
        for prefix, found in zip(corpus.prefixes, corpus.fingerprints, strict=True)
    ]
    inputs += [input_of(SEEN, path, found, relative_to=output_dir) for path, found in seen.items()]
    Manifest(
        kind="selection",
        fingerprint=fingerprint,
        counts={"num_sequences": summary["num_kept"], "num_tokens": summary["num_kept_tokens"]},
        settings=settings,
        inputs=tuple(inputs),
        files=dict(zip(names, map_in_order(lambda name: checksum_of(output_dir / name), names), strict=True)),
    ).write(output_dir)


@contextmanager
def _scratch(output_dir: Path, ranks: Ranks) -> Iterator[Path]:
    """A directory that all ranks see, and that goes when they are done; what killed runs have left goes too."""
    name = ""
    if ranks.rank == 0:
        for stale in output_dir.glob(f"{SCRATCH}*"):
            shutil.rmtree(stale, ignore_errors=True)
        name = tempfile.mkdtemp(prefix=SCRATCH, dir=output_dir)
    scratch = Path(ranks.gather(name)[0])
    try:
        yield scratch
    finally:
        if ranks.rank == 0:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _sole_writer(output_dir: Path, ranks: Ranks) -> Iterator[None]:
    """The first rank holds the lock of the directory for all; a collective call."""
    with ExitStack() as stack:
        error: Exception | None = None
        if ranks.rank == 0:
            try:
                stack.enter_context(sole_writer(output_dir))
            except (MiniPLMError, OSError) as caught:
                error = caught
        error = ranks.gather(error)[0]
        if error is not None:
            if ranks.rank and isinstance(error, MiniPLMError):
                error.reported_elsewhere = True
            raise error
        yield


logger = logging.getLogger(__name__)


def training_prefixes(corpus: ScoredCorpus, given: Sequence[Path]) -> dict[Path, Fingerprint]:
    """Prefixes that the reference was trained on, with their fingerprints.

    Args:
        given: by the user, beside those that the manifest of the reference's scores names.
    """
    found = list(given)
    if REFERENCE in corpus.stores:
        for parent in corpus.manifests[REFERENCE].inputs:
            if parent.role != TRAINING_DATA:
                continue
            path = parent_path(corpus.stores[REFERENCE].directory, parent)
            if is_prefix(path):
                found.append(path)
            else:
                logger.warning("%s, which the reference model was trained on, is not here and not compared", path)
    return {path: IndexedCorpus.open(path).fingerprint() for path in dict.fromkeys(found)}
