"""Sequences of a corpus or a view, and what its sidecar says of them, appended to a corpus that is being written."""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.indexed.reader import IndexedCorpus
from megatron_miniplm.indexed.sidecar import SCHEMA, Sidecar, SidecarWriter
from megatron_miniplm.indexed.view import source_sequences
from megatron_miniplm.indexed.writer import IndexedWriter

_COPY_BYTES = 8 << 20  # gathered and written at once: less, and the threads wait for one another more often
_INDEX_CHUNK = 1 << 20  # sequences whose lengths are summed together
_UNORDERED_SEQUENCES = 1 << 22  # of a view in another order than its source: one pass over the sidecar for so many


def copy_sequences(source: IndexedCorpus, writer: IndexedWriter, advance: Callable[[int], object]) -> None:
    """Append all sequences of a corpus or a view, in its order and with its documents.

    Sequences that lie one after the other in the `.bin` are written as they lie there; the runs of a view are gathered
    first, 8 MiB at a time, or one sequence if that is larger. About 500 MB/s, of which the digest is the slowest part.

    Args:
        advance: called with every number of bytes written.
    """
    for start, stop, tokens_T in _gathered(source):
        writer.append(tokens_T, source.lengths_N[start:stop], _ended_documents(source.boundaries_D, start, stop))
        source.forget_pages()
        advance(tokens_T.nbytes)


def copy_pieces(
    source: IndexedCorpus, sidecar: Sidecar, writer: SidecarWriter, *, first_sequence: int, directory: Path
) -> int:
    """Append the rows of all sequences of a corpus or a view, in its order.

    Args:
        sidecar: `Sidecar.of(source)`.
        first_sequence: index of the first of the sequences in the corpus that is being written.
        directory: of that corpus; the paths of the text files become relative to it.

    Returns:
        Bytes of text in these sequences.

    Raises:
        CorruptArtifactError: the sidecar does not describe these sequences.
    """
    num_tokens = text_bytes = 0
    for table in selected_pieces(source, sidecar):
        num_tokens += int(table["num_tokens"].to_numpy().sum(dtype=np.int64))
        text_bytes += int(table["text_bytes"].to_numpy().sum())
        sequence_P = table["sequence"].to_numpy() + first_sequence
        writer.append(with_columns(relocated(table, sidecar, directory), sequence=sequence_P))
    if num_tokens != source.num_tokens:
        raise CorruptArtifactError(
            f"{sidecar.path} has {num_tokens} tokens for the sequences of {source.prefix}, which have "
            f"{source.num_tokens}: it belongs to another corpus; copy both, or preprocess, again"
        )
    return text_bytes


def selected_pieces(source: IndexedCorpus, sidecar: Sidecar) -> Iterator[pa.Table]:
    """The rows of the sequences of a corpus or a view, in its order; `sequence` counts these sequences, from 0."""
    if not source.is_view:
        yield from sidecar.tables()
        return
    sequences_K = source_sequences(source)
    if (np.diff(sequences_K) > 0).all():
        yield from _pieces_of_ascending(sidecar, sequences_K)
        return
    for start in range(0, len(sequences_K), _UNORDERED_SEQUENCES):
        sequences_U, place_K = np.unique(sequences_K[start : start + _UNORDERED_SEQUENCES], return_inverse=True)
        table = pa.concat_tables([SCHEMA.empty_table(), *_pieces_of_ascending(sidecar, sequences_U)])
        yield _in_order(table.unify_dictionaries().combine_chunks(), place_K, start)


def runs_of_sequences(source: IndexedCorpus, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Runs [start, stop) of the sequences of at most so many bytes of tokens, or of one sequence; none without any."""
    itemsize = source.token_dtype.itemsize
    for chunk in range(0, len(source), _INDEX_CHUNK):
        stops_N = np.cumsum(source.lengths_N[chunk : chunk + _INDEX_CHUNK], dtype=np.int64) * itemsize
        start = done_bytes = 0
        while start < len(stops_N):
            stop = max(start + 1, int(np.searchsorted(stops_N, done_bytes + max_bytes, side="right")))
            yield chunk + start, chunk + stop
            start, done_bytes = stop, int(stops_N[stop - 1])


def with_columns(table: pa.Table, **columns_P: np.ndarray) -> pa.Table:
    """The rows of a sidecar with some of their integer columns replaced."""
    for name, values_P in columns_P.items():
        field = SCHEMA.field(name)
        table = table.set_column(SCHEMA.get_field_index(name), field, pa.array(values_P, field.type))
    return table


def _pieces_of_ascending(sidecar: Sidecar, sequences_U: np.ndarray) -> Iterator[pa.Table]:
    """The rows of sequences that ascend without repetition; `sequence` is their place among them."""
    for table in sidecar.tables() if len(sequences_U) else ():
        sequence_P = table["sequence"].to_numpy()
        place_P = np.searchsorted(sequences_U, sequence_P)
        is_selected_P = sequences_U[np.minimum(place_P, len(sequences_U) - 1)] == sequence_P
        if is_selected_P.any():
            yield with_columns(table.filter(pa.array(is_selected_P)), sequence=place_P[is_selected_P])


def _in_order(table: pa.Table, place_K: np.ndarray, first_sequence: int) -> pa.Table:
    """Rows that are sorted by `sequence`, those of sequence `place_K[k]` as sequence `first_sequence + k`."""
    sequence_P = table["sequence"].to_numpy()
    starts_K, stops_K = (np.searchsorted(sequence_P, place_K, side) for side in ("left", "right"))
    num_rows_K = stops_K - starts_K
    before_K = np.cumsum(num_rows_K) - num_rows_K
    rows_P = np.arange(num_rows_K.sum()) + np.repeat(starts_K - before_K, num_rows_K)
    sequence_P = first_sequence + np.repeat(np.arange(len(place_K)), num_rows_K)
    return with_columns(table.take(pa.array(rows_P)), sequence=sequence_P)


def relocated(table: pa.Table, sidecar: Sidecar, directory: Path) -> pa.Table:
    """Rows of a sidecar with paths relative to another directory, and dictionaries of what occurs, in that order."""
    table = table.unify_dictionaries().combine_chunks()
    source, domain = (table[name].combine_chunks() for name in ("source", "domain"))
    paths = [os.path.relpath(sidecar.source_path(path), directory) for path in source.dictionary.to_pylist()]
    columns = {
        "source": pa.array(paths, pa.string()).take(source.indices).dictionary_encode(),
        "domain": domain.cast(pa.string()).dictionary_encode(),
    }
    for name, column in columns.items():
        table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), column)
    return table


def _gathered(source: IndexedCorpus) -> Iterator[tuple[int, int, np.ndarray]]:
    """Runs [start, stop) of all sequences and their tokens; a thread gathers the next run while one is used."""
    runs = runs_of_sequences(source, _COPY_BYTES) if len(source) else [(0, 0)]  # documents without a sequence
    with ThreadPoolExecutor(1) as thread:
        current = None
        for run in chain(runs, [None]):
            upcoming = (*run, thread.submit(_gather, source, *run)) if run is not None else None
            if current is not None:
                start, stop, tokens = current
                yield start, stop, tokens.result()
            current = upcoming


def _gather(source: IndexedCorpus, start: int, stop: int) -> np.ndarray:
    """The tokens of some sequences; a view into the data if they lie one after the other."""
    pointers_N = source.pointers_N[start:stop]
    stops_N = pointers_N + source.lengths_N[start:stop].astype(np.int64) * source.token_dtype.itemsize
    is_first_N = np.append(True, pointers_N[1:] != stops_N[:-1])[: len(pointers_N)]
    is_last_N = np.append(is_first_N[1:], True)[: len(pointers_N)]
    edges = zip(pointers_N[is_first_N].tolist(), stops_N[is_last_N].tolist(), strict=True)
    data = memoryview(source.data)  # cut five times as fast as an array
    runs = [data[first:last] for first, last in edges]
    return np.frombuffer(runs[0] if len(runs) == 1 else b"".join(runs), source.token_dtype)


def _ended_documents(boundaries_D: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Of each document that ends in (start, stop], and of the empty ones at 0, its sequences from `start` on.

    `IndexedWriter.append` adds these up: a document that ends later is counted from `stop` on in the next call.
    """
    first = bisect_right(boundaries_D, start) if start else 1
    return np.diff(boundaries_D[first : bisect_right(boundaries_D, stop)], prepend=start)
