"""Whether the rows of a sidecar are whole, and whether they describe the corpus beside them. Axis: P rows (pieces)."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_miniplm.errors import one_line
from megatron_miniplm.indexed.layout import bin_path
from megatron_miniplm.indexed.pieces import crc32_of_runs
from megatron_miniplm.indexed.reader import IndexedCorpus

#: Columns that tell whether rows belong to a corpus.
IDENTIFYING = ("sequence", "num_tokens", "crc32")
#: Pieces per row group whose tokens are read and compared, where not all are.
NUM_SAMPLED_PIECES = 8
#: Integers of which a negative one would lead astray.
_NOT_NEGATIVE = ("sequence", "position", "piece", "start_byte", "text_bytes", "num_tokens")


def fault_of_values(table: pa.Table, schema: pa.Schema) -> str | None:
    """Why some rows cannot be rows of a sidecar, whatever the corpus; None if they can."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid as error:
        return f"holds invalid values ({one_line(error)})"
    for name in table.column_names:
        column = table[name]
        if column.null_count and not schema.field(name).nullable:
            return f"has {column.null_count} nulls in column {name}"
        if name in _NOT_NEGATIVE and len(column) and column.to_numpy().min() < 0:
            return f"has a negative number in column {name}"
    return None


class RowCheck:
    """Compares all rows of a sidecar, a table at a time and in order, with the corpus that they must describe.

    Args:
        path: of the sidecar, for messages.
        corpus: that holds the data, not a view of it.

    Attributes:
        num_tokens: in the rows that were compared.
    """

    def __init__(self, path: Path, corpus: IndexedCorpus) -> None:
        self.num_tokens = 0
        self._corpus = corpus
        self._last_sequence = -1
        self._path = path
        self._other = (
            f"{path} belongs to another corpus, or {corpus.prefix} has changed; copy both, or preprocess, again"
        )

    def mismatch(self, table: pa.Table, *, num_sampled: int | None = NUM_SAMPLED_PIECES) -> str | None:
        """Compare the next rows: their tokens per sequence, and checksums.

        Args:
            table: with the columns IDENTIFYING.
            num_sampled: of how many pieces the tokens are compared, evenly spaced; None for all, at 1 GB/s.

        Returns:
            A message that names the file and the sequence; None if all agree.
        """
        sequence_P, num_tokens_P, crc32_P = (table[name].to_numpy() for name in IDENTIFYING)
        if not len(sequence_P):
            return None
        if not len(self._corpus):
            return f"{self._path}: sequence {sequence_P[0]} is not in the index, which is empty: {self._other}"
        if (wrong_P := self._misplaced(sequence_P, num_tokens_P)).any():
            first = int(np.argmax(wrong_P))
            return f"{self._path}: sequence {sequence_P[first]} has other tokens there than in the index: {self._other}"
        stops_P = self.num_tokens + np.cumsum(num_tokens_P, dtype=np.int64)
        for piece in self._damaged(stops_P - num_tokens_P, stops_P, crc32_P, num_sampled):
            return (
                f"{bin_path(self._corpus.prefix)}: sequence {sequence_P[piece]} does not match its checksum in "
                f"{self._path.name}: {self._other}"
            )
        self.num_tokens, self._last_sequence = int(stops_P[-1]), int(sequence_P[-1])
        return None

    def mismatch_at_end(self) -> str | None:
        """Whether rows are missing, after the last table."""
        if self.num_tokens == self._corpus.num_tokens:
            return None
        ends = f"ends with sequence {self._last_sequence}" if self._last_sequence >= 0 else "has no rows"
        return f"{self._path} {ends}, the index with {len(self._corpus) - 1}: {self._other}"

    def _misplaced(self, sequence_P: np.ndarray, num_tokens_P: np.ndarray) -> np.ndarray:
        """Pieces that do not lie in their sequence, when all pieces lie one after the other."""
        stops_P = self.num_tokens + np.cumsum(num_tokens_P, dtype=np.int64)
        known_P = np.clip(sequence_P, 0, len(self._corpus) - 1)
        low, high = int(known_P.min()), int(known_P.max()) + 1
        # Slices are copied: NumPy gathers slowly from the arrays of an index, which are not aligned.
        first_P = self._corpus.pointers_N[low:high].copy()[known_P - low] // self._corpus.token_dtype.itemsize
        length_P = self._corpus.lengths_N[low:high].copy()[known_P - low]
        is_outside_P = (stops_P - num_tokens_P < first_P) | (stops_P > first_P + length_P)
        return (sequence_P != known_P) | is_outside_P

    def _damaged(
        self, start_P: np.ndarray, stop_P: np.ndarray, crc32_P: np.ndarray, num_sampled: int | None
    ) -> Iterable[int]:
        """The first piece whose tokens are not those of its checksum, if there is one."""
        itemsize = self._corpus.token_dtype.itemsize
        if num_sampled is None:
            tokens_T = self._corpus.data[start_P[0] * itemsize : stop_P[-1] * itemsize].view(self._corpus.token_dtype)
            is_damaged_P = crc32_of_runs(tokens_T, stop_P - start_P) != crc32_P
            return np.flatnonzero(is_damaged_P)[:1].tolist()
        for place in _evenly(len(start_P), num_sampled).tolist():
            if zlib.crc32(self._corpus.data[start_P[place] * itemsize : stop_P[place] * itemsize]) != crc32_P[place]:
                return [place]
        return []


def mismatch_of_some(path: Path, corpus: IndexedCorpus, table: pa.Table) -> str | None:
    """Whether some rows from anywhere in a sidecar are of other tokens than a corpus has: a message, or None.

    Compares the first pieces of some sequences, evenly spaced: those begin where their sequence does.
    """
    sequence_P, num_tokens_P, crc32_P = (table[name].to_numpy() for name in IDENTIFYING)
    firsts = 1 + np.flatnonzero(sequence_P[1:] != sequence_P[:-1])
    if not len(firsts):
        return None
    for place in firsts[_evenly(len(firsts))].tolist():
        sequence = int(sequence_P[place])
        tokens_T = corpus.sequence(sequence) if sequence < len(corpus) else None
        if tokens_T is None or zlib.crc32(tokens_T[: num_tokens_P[place]].tobytes()) != crc32_P[place]:
            return _mismatch(path, corpus, sequence)
    return None


def mismatch_of_sequence(path: Path, corpus: IndexedCorpus, sequence: int, rows: list[dict[str, int]]) -> str | None:
    """Whether the rows of one sequence are not of its tokens: a message, or None; reads that sequence alone."""
    tokens_T = corpus.sequence(sequence) if 0 <= sequence < len(corpus) else np.zeros(0, corpus.token_dtype)
    num_tokens = [row["num_tokens"] for row in rows]
    if sum(num_tokens) == len(tokens_T):
        found = crc32_of_runs(tokens_T, np.array(num_tokens, np.int64))
        if found.tolist() == [row["crc32"] for row in rows]:
            return None
    return _mismatch(path, corpus, sequence)


def _mismatch(path: Path, corpus: IndexedCorpus, sequence: int) -> str:
    return (
        f"{path} does not describe the tokens of sequence {sequence} of {corpus.prefix}: it belongs to another corpus, "
        "or the corpus has changed; copy both, or preprocess, again"
    )


def _evenly(num_places: int, num_wanted: int = NUM_SAMPLED_PIECES) -> np.ndarray:
    """Some of the places 0 .. num_places - 1, the first and the last among them, int64."""
    return np.unique(np.linspace(0, num_places - 1, num_wanted).astype(np.int64))
