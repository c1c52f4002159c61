"""From a corpus back to the text it was made from, by way of its sidecar.

    sidecar ──► rows of the wanted sequences, unit by unit of the text files ──► the texts of their pieces

A sequence's pieces all come from one unit (`sources`), and the rows of a unit stand together, so that every unit is
read once, and the text files from start to end. Axes: P pieces, U wanted sequences.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file_samples
from megatron_miniplm.corpus.encoding import utf8_sizes
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.parquet_text import ParquetText
from megatron_miniplm.corpus.readers import UnitReader
from megatron_miniplm.corpus.sources import Source, expand_inputs, row_group_runs, whole_span
from megatron_miniplm.corpus.units import Unit, units_of
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.copying import with_columns
from megatron_miniplm.indexed.sidecar import Sidecar

_REMEDY = "bring the old file back, or convert with --from tokens"


@dataclass(frozen=True, kw_only=True)
class Excerpts:
    """The wanted pieces of one unit: picklable work.

    Attributes:
        json_key: of the text.
        max_line_bytes: of the corpus that was made from it.
        append_eod: whether documents end with the end-of-document token.
        position_P, start_byte_P, text_bytes_P: as in the sidecar.
        has_successor_P: whether the sidecar has a later piece of the same document.
    """

    unit: Unit
    json_key: str
    max_line_bytes: int
    append_eod: bool
    position_P: np.ndarray
    start_byte_P: np.ndarray
    text_bytes_P: np.ndarray
    has_successor_P: np.ndarray


def find_excerpts(
    sidecar: Sidecar,
    sequences_U: np.ndarray,
    *,
    json_key: str,
    append_eod: bool,
    max_line_bytes: int,
    fingerprints: dict[Path, Fingerprint],
) -> Iterator[tuple[Excerpts, pa.Table]]:
    """The pieces of some sequences by unit, in the order of the sidecar, each with its rows.

    Units without a wanted piece are not read, except that compressed files are decompressed up to the last wanted one.

    Args:
        sequences_U: strictly ascending, at least one; in the rows, `sequence` is the place in it.
        fingerprints: of the text files when they were encoded, by absolute path.

    Raises:
        InputError: a text file is missing or has changed.
    """
    rows = _Rows(sidecar)
    fields = Fields(text_keys=(json_key,))
    while (head := rows.head()) is not None:
        name, num_taken = head[0], rows.num_taken
        path = sidecar.source_path(name)
        source = _unchanged_source(path, sidecar, fingerprints)
        for start, stop, units in _blocks(source, fields, max_line_bytes):
            head = rows.head()
            if head is None or head[0] != name or head[1] < start:
                break  # the next file, or this one again from an earlier place, as merged corpora have it
            if head[1] >= stop:
                continue
            wanted = _wanted(rows.take(name, start, stop), sequences_U)
            while len(wanted):  # one pass over the units, unless the rows go back to an earlier one
                num_left = len(wanted)
                for unit in units():
                    of_unit = wanted.slice(0, _num_leading(wanted["position"].to_numpy(), unit.start, unit.stop))
                    if len(of_unit):
                        yield (
                            _excerpts(unit, of_unit, json_key, append_eod, max_line_bytes),
                            of_unit.drop_columns(_HAS_SUCCESSOR),
                        )
                        wanted = wanted.slice(len(of_unit))
                    if len(wanted) == 0:
                        break
                if len(wanted) == num_left:
                    raise _changed(path, sidecar)
        if rows.num_taken == num_taken:
            raise _changed(path, sidecar)


def read_excerpts(excerpts: Excerpts) -> tuple[list[str], np.ndarray]:
    """The text of each piece, and whether its document ends with it.

    Raises:
        InputError: a piece is not in the text.
    """
    documents = UnitReader(Fields(text_keys=(excerpts.json_key,)), excerpts.max_line_bytes).read(excerpts.unit)
    texts_D = documents.texts[excerpts.json_key]
    positions_D = np.array([*documents.positions, -1], np.int64)
    document_P = np.searchsorted(positions_D[:-1], excerpts.position_P)
    if (positions_D[document_P] != excerpts.position_P).any():
        raise _other_text(excerpts.unit.source.path)
    used_U, place_P = np.unique(document_P, return_inverse=True)
    sizes_P = utf8_sizes([texts_D[document] for document in used_U.tolist()])[place_P]
    stop_byte_P = excerpts.start_byte_P + excerpts.text_bytes_P
    if (stop_byte_P > sizes_P).any():
        raise _other_text(excerpts.unit.source.path)
    texts, last, data = [], -1, b""
    edges = (column.tolist() for column in (document_P, excerpts.start_byte_P, stop_byte_P, sizes_P))
    for document, start, stop, size in zip(*edges, strict=True):
        if stop - start == size:
            texts.append(texts_D[document])
            continue
        if document != last:
            last, data = document, texts_D[document].encode("utf-8")
        try:
            texts.append(data[start:stop].decode("utf-8"))
        except UnicodeDecodeError:
            raise _other_text(excerpts.unit.source.path) from None
    return texts, (stop_byte_P == sizes_P) & ~excerpts.has_successor_P


def _other_text(path: Path) -> InputError:
    return InputError(f"{path} holds other documents than the sidecar says: {_REMEDY}")


class _Rows:
    """The rows of a sidecar, taken from the front.

    Attributes:
        num_taken: rows so far.
    """

    def __init__(self, sidecar: Sidecar) -> None:
        self.num_taken = 0
        self._tables = sidecar.tables()
        self._table: pa.Table | None = None
        self._sources: list[str] = []
        self._source_P = self._position_P = np.empty(0, np.int64)

    def head(self) -> tuple[str, int] | None:
        """Source and position of the next row; None behind the last."""
        while len(self._position_P) == 0:
            table = next(self._tables, None)
            if table is None:
                return None
            self._table = table.unify_dictionaries().combine_chunks()
            source = self._table["source"].combine_chunks()
            self._sources, self._source_P = source.dictionary.to_pylist(), source.indices.to_numpy()
            self._position_P = self._table["position"].to_numpy()
        return self._sources[self._source_P[0]], int(self._position_P[0])

    def take(self, source: str, start: int, stop: int) -> pa.Table:
        """The next rows, as long as they are of a source and their position lies in [start, stop); at least one."""
        taken = []
        while (head := self.head()) is not None and head[0] == source and start <= head[1] < stop:
            assert self._table is not None
            is_other_P = self._source_P != self._source_P[0]
            num_of_source = int(np.argmax(is_other_P)) if is_other_P.any() else len(is_other_P)
            num_rows = _num_leading(self._position_P[:num_of_source], start, stop)
            taken.append(self._table.slice(0, num_rows))
            self.num_taken += num_rows
            self._table = self._table.slice(num_rows)
            self._source_P, self._position_P = self._source_P[num_rows:], self._position_P[num_rows:]
        return pa.concat_tables(taken)


def _num_leading(position_P: np.ndarray, start: int, stop: int) -> int:
    """How many of the first positions lie in [start, stop)."""
    is_other_P = (position_P < start) | (position_P >= stop)
    return int(np.argmax(is_other_P)) if is_other_P.any() else len(is_other_P)


_HAS_SUCCESSOR = "has_successor"


def _wanted(table: pa.Table, sequences_U: np.ndarray) -> pa.Table:
    """The rows of the wanted sequences, with one more column; `sequence` becomes their place in `sequences_U`."""
    sequence_P, position_P, piece_P = (table[name].to_numpy() for name in ("sequence", "position", "piece"))
    _, document_P = np.unique(position_P, return_inverse=True)
    last_piece_D = np.zeros(document_P.max(initial=0) + 1, piece_P.dtype)
    np.maximum.at(last_piece_D, document_P, piece_P)
    has_successor = pa.array(piece_P < last_piece_D[document_P])
    place_P = np.minimum(np.searchsorted(sequences_U, sequence_P), len(sequences_U) - 1)
    is_wanted = pa.array(sequences_U[place_P] == sequence_P)
    return with_columns(table, sequence=place_P).append_column(_HAS_SUCCESSOR, has_successor).filter(is_wanted)


def _excerpts(unit: Unit, wanted: pa.Table, json_key: str, append_eod: bool, max_line_bytes: int) -> Excerpts:
    return Excerpts(
        unit=unit,
        json_key=json_key,
        max_line_bytes=max_line_bytes,
        append_eod=append_eod,
        position_P=wanted["position"].to_numpy(),
        start_byte_P=wanted["start_byte"].to_numpy(),
        text_bytes_P=wanted["text_bytes"].to_numpy(),
        has_successor_P=wanted[_HAS_SUCCESSOR].to_numpy(),
    )


def _blocks(
    source: Source, fields: Fields, max_line_bytes: int
) -> Iterator[tuple[int, int, Callable[[], Iterable[Unit]]]]:
    """Runs of units that can be passed over unread: the first position, the one behind the last, and the units."""
    span = whole_span(source)
    if source.format != "parquet":
        for unit in units_of(span, fields, max_line_bytes):
            yield unit.start, unit.stop, partial(iter, (unit,))
        return
    group_rows = ParquetText(source.path).group_rows
    start = 0
    for first, last in row_group_runs(source.path):
        stop = start + sum(group_rows[first:last])
        yield start, stop, partial(units_of, replace(span, start=first, stop=last), fields)
        start = stop


def _unchanged_source(path: Path, sidecar: Sidecar, fingerprints: dict[Path, Fingerprint]) -> Source:
    """A text file as it was when it was encoded.

    Raises:
        InputError: it is missing or has changed.
    """
    if not path.is_file():
        raise InputError(f"{path}, the text behind {sidecar.path}, does not exist: {_REMEDY}")
    if fingerprints.get(path.absolute()) != digest_file_samples(path):
        raise _changed(path, sidecar)
    (source,) = expand_inputs([path])
    return source


def _changed(path: Path, sidecar: Sidecar) -> InputError:
    return InputError(f"{path}, the text behind {sidecar.path}, has changed since it was encoded: {_REMEDY}")
