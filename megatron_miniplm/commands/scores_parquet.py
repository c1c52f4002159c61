"""A finished store as Parquet, with the id and the domain of every sequence where the corpus tells them.

Everything streams: memory holds some 100,000 rows and a few row groups of a sidecar, whatever the size of the store.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_miniplm.artifacts.atomic import atomic_output
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import is_prefix
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import Sidecar, sidecar_path
from megatron_miniplm.indexed.view import data_prefix

logger = logging.getLogger(__name__)

ROW_GROUP_SEQUENCES = 1 << 17
_CACHED_ROW_GROUPS = 4

_SCORE_FIELDS = [
    pa.field("prefix", pa.dictionary(pa.int32(), pa.string()), nullable=False),
    pa.field("sequence", pa.int64(), nullable=False),
    pa.field("nll", pa.float32(), nullable=False),
    pa.field("num_tokens", pa.int32(), nullable=False),
]
_LABEL_FIELDS = [pa.field("id", pa.string()), pa.field("domain", pa.dictionary(pa.int32(), pa.string()))]


def write_parquet(store: ScoreStore, path: Path, advance: Callable[[int], object] = lambda num_sequences: None) -> None:
    """One row a sequence, in order; `sequence` counts from 0 in each prefix.

    The columns `id` and `domain` are there if any prefix of the corpus has a sidecar, and null for the others.

    Args:
        advance: called with every number of sequences written.

    Raises:
        InputError: the store is incomplete.
        FingerprintMismatchError: a corpus is no longer what was scored.
        CorruptArtifactError: a block or a sidecar is damaged.
    """
    manifest = store.require_complete()
    prefixes = [parent_path(store.directory, parent) for parent in manifest.inputs if parent.role == "corpus"]
    labelled = [is_prefix(prefix) and sidecar_path(data_prefix(prefix)).exists() for prefix in prefixes]
    for prefix in prefixes:
        if not is_prefix(prefix):
            logger.warning("%s is not here: its sequences are written without id and domain", prefix)
    schema = pa.schema(_SCORE_FIELDS + (_LABEL_FIELDS if any(labelled) else []))
    names = pa.array([corpus["name"] for corpus in store.identity["corpus"]], pa.string())
    with atomic_output(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        start = 0
        for position, (corpus, prefix) in enumerate(zip(store.identity["corpus"], prefixes, strict=True)):
            labels = _Labels(prefix, corpus["fingerprint"]) if labelled[position] else None
            for first in range(0, corpus["num_sequences"], ROW_GROUP_SEQUENCES):
                last = min(first + ROW_GROUP_SEQUENCES, corpus["num_sequences"])
                scores = store.read(range(start + first, start + last))
                prefix_N = pa.array(np.full(last - first, position, np.int32))
                columns = [
                    pa.DictionaryArray.from_arrays(prefix_N, names),
                    pa.array(np.arange(first, last)),
                    pa.array(np.ascontiguousarray(scores["nll"])),
                    pa.array(np.ascontiguousarray(scores["num_tokens"])),
                ]
                if any(labelled):
                    ids, domains = labels.of(first, last) if labels else _nulls(last - first)
                    columns += [ids, domains.dictionary_encode()]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema), row_group_size=ROW_GROUP_SEQUENCES)
                advance(last - first)
            start += corpus["num_sequences"]


class _Labels:
    """Id and domain of a prefix's sequences: those of the first piece in the sidecar, of its source if it is a view.

    Raises:
        FingerprintMismatchError: the prefix is no longer what was scored.
    """

    def __init__(self, prefix: Path, fingerprint: str) -> None:
        self._corpus = IndexedCorpus.open(prefix)
        if (found := self._corpus.fingerprint()) != fingerprint:
            raise FingerprintMismatchError(
                f"{prefix} is now [{found[:SHORT_HEX]}], its scores are of [{fingerprint[:SHORT_HEX]}]: bring the old "
                "corpus back, or score it again"
            )
        self._source = IndexedCorpus.open(data_prefix(prefix)) if self._corpus.is_view else self._corpus
        self._sidecar = Sidecar(sidecar_path(data_prefix(prefix)), self._corpus)
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._last_G = self._sidecar.last_sequences

    def of(self, first: int, last: int) -> list[pa.Array]:
        """Ids and domains of a run of sequences, strings or null."""
        sequence_N = self._source_sequences(first, last)
        group_N = np.searchsorted(self._last_G, sequence_N)  # the first row group that may hold it
        found, places_N = [], np.full(last - first, -1, np.int64)
        num_found = 0
        for group in np.unique(group_N[group_N < len(self._last_G)]).tolist():
            table = self._table(group)
            sequence_P = table["sequence"].to_numpy()
            members = np.flatnonzero(group_N == group)
            rows = np.minimum(np.searchsorted(sequence_P, sequence_N[members]), len(sequence_P) - 1)
            there = sequence_P[rows] == sequence_N[members]  # a sequence without a piece has no row
            places_N[members[there]] = num_found + np.arange(int(there.sum()))
            found.append(table.take(pa.array(rows[there])))
            num_found += int(there.sum())
        if not num_found:
            return _nulls(last - first)
        labels = pa.concat_tables(found).combine_chunks().take(pa.array(places_N, mask=places_N < 0))
        return [labels[name].combine_chunks() for name in ("id", "domain")]

    def _source_sequences(self, first: int, last: int) -> np.ndarray:
        """The sequences of the corpus that holds the data."""
        if not self._corpus.is_view:
            return np.arange(first, last)
        pointers_N, lengths_N = self._corpus.pointers_N[first:last], self._corpus.lengths_N[first:last]
        found_N = np.minimum(np.searchsorted(self._source.pointers_N, pointers_N), len(self._source) - 1)
        wrong_N = (self._source.pointers_N[found_N] != pointers_N) | (self._source.lengths_N[found_N] != lengths_N)
        if wrong_N.any():
            raise CorruptArtifactError(
                f"{self._corpus.prefix}: sequence {first + int(np.argmax(wrong_N))} is no sequence of "
                f"{self._source.prefix}: the view was made of another corpus; make it again"
            )
        return found_N

    def _table(self, group: int) -> pa.Table:
        """A row group, the last few of which are kept: neighbours in a view mostly lie in one."""
        if group not in self._tables:
            table = self._sidecar.group(group, ["sequence", "id", "domain"])
            self._tables[group] = table.set_column(2, "domain", table["domain"].cast(pa.string()))
            if len(self._tables) > _CACHED_ROW_GROUPS:
                self._tables.popitem(last=False)
        self._tables.move_to_end(group)
        return self._tables[group]


def _nulls(num_rows: int) -> list[pa.Array]:
    return [pa.nulls(num_rows, pa.string()), pa.nulls(num_rows, pa.string())]
