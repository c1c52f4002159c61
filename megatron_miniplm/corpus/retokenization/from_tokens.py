"""From one tokenizer's ids to another's by way of the decoded text, without the text that they were made from.

Sequences are split at the end-of-document tokens into segments: what each has of one document. Axes: S segments.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from megatron_miniplm.corpus.encoding import as_token_dtype, insert_eod
from megatron_miniplm.corpus.retokenization.prefixes import ConvertedOutput, Origin
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.workers import WorkerPool
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.copying import runs_of_sequences, selected_pieces
from megatron_miniplm.indexed.sidecar import SCHEMA
from megatron_miniplm.runtime.progress import Progress

INVALID_UTF8 = "its bytes are not UTF-8; they were replaced by U+FFFD"
OTHER_TEXT = "the source tokenizer gives other ids for its text, and these are another text"
_RUN_BYTES = 4 << 20  # of tokens, which are some 8 MB of text
_MAX_OPEN = 4  # prefixes


@dataclass(frozen=True, kw_only=True)
class Run:
    """The sequences [start, stop) of a prefix: picklable work."""

    prefix: Path
    tokenizer: TokenizerSettings
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Recoded:
    """What a run has become.

    Attributes:
        tokens_T: of all segments, one after the other, in the new tokenizer.
        lengths_S: new tokens of each segment, the end-of-document token included, int64.
        stops_S: old tokens of the run up to the end of each segment, int64.
        failures: sequences, counted as in the prefix, whose text may not be what was encoded, each with a reason.
        num_other_ids: segments whose text the source tokenizer encodes with other ids, as it may where a text begins
            or ends within a word.
    """

    tokens_T: np.ndarray
    lengths_S: np.ndarray
    stops_S: np.ndarray
    failures: list[tuple[int, str]]
    num_other_ids: int


def convert_tokens(
    origin: Origin,
    tokenizer: TokenizerSettings,
    output: ConvertedOutput,
    round_trip: IO[bytes],
    pool: WorkerPool[Any, Recoded],
    progress: Progress,
) -> dict[str, int]:
    """Append all sequences of a prefix, decoded and encoded again.

    Args:
        tokenizer: of the prefix.
        round_trip: gets one JSON line for each sequence whose text may not be what was encoded.

    Returns:
        Counts of what is worth knowing.
    """
    corpus, sidecar = origin.corpus, origin.sidecar
    rows = _RowsBySequence(selected_pieces(corpus, sidecar)) if sidecar is not None else None
    num_empty = num_failures = num_other_ids = 0
    runs = (
        Run(prefix=corpus.prefix, tokenizer=tokenizer, start=start, stop=stop)
        for start, stop in runs_of_sequences(corpus, _RUN_BYTES)
    )
    for run, recoded in pool.map(runs):
        table = rows.before(run.stop) if rows is not None else None
        sequence_P, lengths_P = _pieces(corpus, run, recoded, table)
        num_empty += int((~output.append(recoded.tokens_T, lengths_P, sequence_P, table)).sum())
        num_failures += len(recoded.failures)
        num_other_ids += recoded.num_other_ids
        for sequence, reason in recoded.failures:
            round_trip.write(json.dumps({"sequence": sequence, "reason": reason}).encode() + b"\n")
        progress.advance(run.stop - run.start)
    return {
        "num_empty_sequences": num_empty,
        "num_round_trip_failures": num_failures,
        "num_texts_with_other_ids": num_other_ids,
    }


def _pieces(corpus: IndexedCorpus, run: Run, recoded: Recoded, table: pa.Table | None) -> tuple[np.ndarray, np.ndarray]:
    """Sequence and new tokens of each piece of a run; without rows of a sidecar every sequence is one piece.

    Raises:
        CorruptArtifactError: the rows are those of other tokens.
    """
    if table is None:
        sequence_P, num_tokens_P = np.arange(run.start, run.stop), corpus.lengths_N[run.start : run.stop]
    else:
        sequence_P, num_tokens_P = table["sequence"].to_numpy(), table["num_tokens"].to_numpy()
    stops_P = np.cumsum(num_tokens_P, dtype=np.int64)
    if stops_P[-1:].sum() != recoded.stops_S[-1:].sum() or not np.isin(stops_P, np.append(0, recoded.stops_S)).all():
        raise CorruptArtifactError(
            f"the sidecar of {run.prefix} has other tokens for the sequences {run.start} to {run.stop - 1} than the "
            "corpus: it belongs to another one; copy both, or preprocess, again"
        )
    new_stops = np.append(0, np.cumsum(recoded.lengths_S))
    return sequence_P, np.diff(new_stops[np.searchsorted(recoded.stops_S, stops_P, side="right")], prepend=0)


class _RowsBySequence:
    """The rows of a sidecar, taken from the front."""

    def __init__(self, tables: Iterator[pa.Table]) -> None:
        self._tables = tables
        self._table = SCHEMA.empty_table()

    def before(self, stop: int) -> pa.Table:
        """The next rows, up to those of sequence `stop`."""
        taken = [SCHEMA.empty_table()]
        while True:
            num_rows = int(np.searchsorted(self._table["sequence"].to_numpy(), stop))
            taken.append(self._table.slice(0, num_rows))
            self._table = self._table.slice(num_rows)
            if len(self._table) > 0 or (following := next(self._tables, None)) is None:
                break
            self._table = following
        return pa.concat_tables(taken)


class RunRecoder:
    """Decodes runs of sequences and encodes them with another tokenizer.

    Args:
        sources: encoders of the tokenizers that runs name.
    """

    def __init__(self, encoder: TextEncoder, sources: dict[TokenizerSettings, TextEncoder]) -> None:
        self._encoder = encoder
        self._sources = sources
        self._open_corpus = lru_cache(_MAX_OPEN)(IndexedCorpus.open)

    def recode(self, run: Run) -> Recoded:
        """Decode and encode.

        Raises:
            InputError: an id is none of the source tokenizer's, or the new tokenizer lacks an end-of-document token.
        """
        corpus, source = self._open_corpus(run.prefix), self._sources[run.tokenizer]
        tokens_T = np.concatenate([corpus.sequence(index) for index in range(run.start, run.stop)])
        if tokens_T.max(initial=0) >= source.vocab_size:
            raise InputError(
                f"{run.prefix} has token {tokens_T.max()}, the tokenizer {source.vocab_size} tokens: give the one that "
                "it was encoded with as --source-tokenizer-model"
            )
        stops_N = np.cumsum(corpus.lengths_N[run.start : run.stop], dtype=np.int64)
        stops_S, has_eod_S = split_at_eod(tokens_T, stops_N, source.eod_id)
        if has_eod_S.any() and self._encoder.eod_id is None:
            raise InputError(
                f"{run.prefix} has end-of-document tokens, and the new tokenizer names none: set eos_token in its "
                "tokenizer_config.json (SentencePiece: train with an eos_id)"
            )
        lengths_S = np.diff(stops_S, prepend=0) - has_eod_S
        is_content_T = np.ones(len(tokens_T), bool)
        is_content_T[stops_S[has_eod_S] - 1] = False
        texts, reasons, num_other_ids = _decode(source, tokens_T[is_content_T], lengths_S)
        sequence_S = run.start + np.searchsorted(stops_N, stops_S)
        failures = {int(sequence_S[segment]): reason for segment, reason in reversed(reasons)}
        new_T, new_lengths_S = self._encoder.encode(texts)
        new_T, new_lengths_S = insert_eod(
            as_token_dtype(new_T, self._encoder), new_lengths_S, has_eod_S, self._encoder.eod_id
        )
        return Recoded(
            tokens_T=new_T,
            lengths_S=new_lengths_S,
            stops_S=stops_S,
            failures=sorted(failures.items()),
            num_other_ids=num_other_ids,
        )


def split_at_eod(tokens_T: np.ndarray, stops_N: np.ndarray, eod_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Where the segments of N sequences end, and whether with an end-of-document token.

    A segment ends behind every end-of-document token and at the end of every sequence; sequences without tokens have
    none.
    """
    eod_stops = np.flatnonzero(tokens_T == eod_id) + 1 if eod_id is not None else np.empty(0, np.int64)
    stops_S = np.union1d(stops_N[stops_N > 0], eod_stops)
    return stops_S, np.isin(stops_S, eod_stops, assume_unique=True)


def _decode(
    source: TextEncoder, tokens_T: np.ndarray, lengths_S: np.ndarray
) -> tuple[list[str], list[tuple[int, str]], int]:
    """The text of each segment; those that failed, with reasons; and how many get other ids when encoded again."""
    data = source.decode_batch(tokens_T, lengths_S)
    texts, failures = [], []
    for segment, one in enumerate(data):
        try:
            texts.append(one.decode("utf-8"))
        except UnicodeDecodeError:
            texts.append(one.decode("utf-8", errors="replace"))
            failures.append((segment, INVALID_UTF8))
    again_T, again_lengths_S = source.encode(texts)
    if np.array_equal(again_T, tokens_T) and np.array_equal(again_lengths_S, lengths_S):
        return texts, failures, 0
    failed = {segment for segment, _ in failures}
    ours, theirs = (pairwise([0, *np.cumsum(each).tolist()]) for each in (lengths_S, again_lengths_S))
    others = [
        segment
        for segment, (our, their) in enumerate(zip(ours, theirs, strict=True))
        if segment not in failed and not np.array_equal(tokens_T[slice(*our)], again_T[slice(*their)])
    ]
    stops_S = np.cumsum(again_lengths_S)
    parts = [again_T[stops_S[segment] - again_lengths_S[segment] : stops_S[segment]] for segment in others]
    again = source.decode_batch(np.concatenate([again_T[:0], *parts]), again_lengths_S[others])
    lossy = [(segment, OTHER_TEXT) for segment, one in zip(others, again, strict=True) if one != data[segment]]
    return texts, sorted(failures + lossy), len(others) - len(lossy)
