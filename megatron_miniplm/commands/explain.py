"""Explain why a selection keeps or drops a sequence: its scores, rank, threshold, weight and source text.

  miniplm explain SELECTION --sequence 4711
  miniplm explain SELECTION --sequence 12 400 --prefix pile_text_document

Reads all scores once and compares what the thresholds keep with the indices on disk. The scores, and for the text the
sidecars and raw files, must be where the selection's manifest says.
"""

import argparse
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.commands.shared_flags import add_decoding_arguments, decoder_of
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.terminal import printable_json

if TYPE_CHECKING:
    from megatron_miniplm.artifacts.selections import Selection
    from megatron_miniplm.corpus.tokenization.settings import TextEncoder
    from megatron_miniplm.reports.explain import Explanation

#: Characters that are shown of each document's text.
SHOWN_CHARACTERS = 300


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("selection", type=Path, metavar="SELECTION", help="directory that difference-sampling wrote")
    parser.add_argument(
        "--sequence",
        type=int,
        nargs="+",
        action="extend",
        required=True,
        metavar="K",
        help="sequence ids, counted from 0 over all prefixes in order; with --prefix, counted within that prefix",
    )
    parser.add_argument("--prefix", metavar="NAME", help="name or path of a source prefix")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_decoding_arguments(parser, "decodes a sequence whose original text is not known")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.artifacts.selections import Selection
    from megatron_miniplm.reports.explain import explain

    selection = Selection.open(arguments.selection)
    ids = global_ids(selection, arguments.sequence, arguments.prefix)
    decoder = decoder_of(arguments)
    explanations = [
        asdict(explanation) | _source(selection, explanation, decoder) for explanation in explain(selection, ids)
    ]
    if arguments.json:
        found = {
            "selection": str(arguments.selection),
            "from_scores": selection.summary["from_scores"],
            "sequences": explanations,
        }
        print(printable_json(found))
        return
    for explanation in explanations:
        print(f"{explanation['prefix']}, sequence {explanation['index']:,}")
        rows = [(label, text) for label, text in _rows(explanation, selection.summary["from_scores"]) if text]
        width = max(len(label) for label, _ in rows)
        for label, text in rows:
            print(f"  {label:<{width}} {text}")


def global_ids(selection: "Selection", sequences: list[int], prefix: str | None = None) -> list[int]:
    """Global ids of sequences that are given by id, or by index in a prefix.

    Raises:
        InputError: there is no such prefix or sequence.
    """
    where, start = str(selection.directory), 0
    size = sum(source.num_source_sequences for source in selection.prefixes)
    if prefix is not None:
        found = [source for source in selection.prefixes if prefix in (source.name, str(source.path))]
        if not found:
            names = ", ".join(source.name for source in selection.prefixes)
            raise InputError(f"{where} has no prefix {prefix!r}: it was made of {names}")
        if len(found) > 1:
            paths = " or ".join(str(source.path) for source in found)
            raise InputError(f"{where} has {len(found)} prefixes {prefix!r}: give --prefix {paths}")
        where, start, size = f"{where}: {prefix}", found[0].start, found[0].num_source_sequences
    for sequence in sequences:
        if not 0 <= sequence < size:
            there = f"they count from 0 to {size - 1}" if size else "it has none"
            raise InputError(f"{where} has no sequence {sequence}: {there}")
    return [start + sequence for sequence in sequences]


def _source(selection: "Selection", explanation: "Explanation", decoder: "TextEncoder | None") -> dict[str, Any]:
    """`passages`, what the sequence has of which documents; where that is not known, `no_source` says why.

    Args:
        decoder: gives `decoded_text` then; without it that is None.
    """
    from megatron_miniplm.indexed import IndexedCorpus
    from megatron_miniplm.reports.provenance import decoded_text, passages_of

    start = explanation.sequence - explanation.index
    path = next(source.path for source in selection.prefixes if source.start == start and source.num_source_sequences)
    corpus = IndexedCorpus.open(path)
    try:
        found = [asdict(passage) for passage in passages_of(corpus, explanation.index)]
    except InputError as error:
        decoded = None if decoder is None else decoded_text(corpus, explanation.index, decoder, SHOWN_CHARACTERS)
        return {"passages": [], "no_source": str(error), "decoded_text": decoded}
    passages = [passage | {"text": passage["text"][:SHOWN_CHARACTERS]} for passage in found]
    return {"passages": passages, "no_source": None, "decoded_text": None}


def _rows(found: dict[str, Any], expression: str) -> list[tuple[str, str]]:
    """Label and text of every line; an empty text is not printed.

    Args:
        expression: what the value is.
    """
    rank = f"{found['num_ranked']:,} sequences take part, this one does not"
    if found["takes_part"]:
        rank = f"{found['rank']:,} of {found['num_ranked']:,} (before {found['percentile']:.4g}% of the others)"
    if found["domain_rank"] is not None:
        rank += f"; {found['domain_rank']:,} of {found['num_ranked_in_domain']:,} in domain {found['domain']!r}"
    value = "none" if found["value"] is None else f"{found['value']:.6g} {found['unit']}"
    weight = "" if found["weight"] is None else f"{found['weight']:.6g}"
    if found["num_copies"] is not None:
        weight += f" ({found['num_copies']:,} copies in the view)"
    rows = [
        ("global id", f"{found['sequence']:,}"),
        ("tokens", f"{found['num_tokens']:,} ({found['num_scored_tokens']:,} scored)"),
        ("text bytes", "" if found["text_bytes"] is None else f"{found['text_bytes']:,}"),
        ("domain", "" if found["domain"] is None else repr(found["domain"])),
        *[(label, _nll(found, name)) for label, name in _SUMS.items()],
        ("value", f"{value} ({expression})"),
        ("perturbed", "" if found["perturbed_value"] is None else f"{found['perturbed_value']:.6g}"),
        ("rank", rank),
        ("kept", f"{'yes' if found['kept'] else 'no'}: {found['why']}"),
        ("weight", weight),
    ]
    for passage in found["passages"]:
        labels = "".join(f", {name} {passage[name]}" for name in ("id", "domain") if passage[name] is not None)
        place = f"{passage['source']}, line {passage['line']}{labels}"
        rows.append(("source", f"{place}: piece {passage['piece']}, from byte {passage['start_byte']}"))
        rows.append(("text", " ".join(passage["text"].split())))
    decoded = " ".join((found["decoded_text"] or "").split())
    return [*rows, ("source", found["no_source"] or ""), ("decoded", decoded)]


_SUMS = {
    "teacher NLL": "teacher_nll_nats",
    "reference NLL": "reference_nll_nats",
    "predicted": "predicted_difference_nats",
}


def _nll(found: dict[str, Any], name: str) -> str:
    """A sum, and what it is a token and a byte."""
    nats = found[name]
    if nats is None:
        return ""
    shares = []
    if found["num_scored_tokens"]:
        shares.append(f"{nats / found['num_scored_tokens']:.6g} a token")
    if found["text_bytes"]:
        shares.append(f"{nats / math.log(2) / found['text_bytes']:.6g} bits a byte")
    return f"{nats:.6g} nats" + (f" ({', '.join(shares)})" if shares else "")
