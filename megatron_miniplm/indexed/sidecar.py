"""The provenance sidecar `<prefix>.documents.parquet`: which part of which document every sequence holds.

One row is a *piece*: what one sequence has of one document. In document mode every sequence is one piece; a chunk may
hold several. The rows are in the order of the sequences, so that the pieces of one sequence stand together.

A view has no sidecar of its own: its pointers lead into its source's data, and with that into its source's sidecar.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, create_over, named_in_errors, publish
from megatron_miniplm.artifacts.manifest import checksum_of
from megatron_miniplm.artifacts.parquet_pages import read_pages
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import CorruptArtifactError, InputError, one_line
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.pieces import NO_DOMAIN, Pieces
from megatron_miniplm.indexed.sidecar_rows import (
    IDENTIFYING,
    RowCheck,
    fault_of_values,
    mismatch_of_sequence,
    mismatch_of_some,
)
from megatron_miniplm.indexed.view import data_prefix

SUFFIX = ".documents.parquet"
#: 2 has a CRC-32 in every page header, which readers verify; else it is 1.
FORMAT_VERSION = 2
_READABLE_VERSIONS = ("1", "2")
_VERSION_KEY = b"miniplm_sidecar_version"
_ROW_GROUP_PIECES = 1 << 17
#: What a row group may take in memory: a damaged or hostile file must not take it all.
_MAX_ROW_GROUP_BYTES = 1 << 30

#: Docs: docs/formats.md.
SCHEMA = pa.schema(
    [
        pa.field("sequence", pa.int64(), nullable=False),
        pa.field("source", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("piece", pa.int32(), nullable=False),
        pa.field("start_byte", pa.int64(), nullable=False),
        pa.field("text_bytes", pa.int64(), nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("domain", pa.dictionary(pa.int32(), pa.string())),
    ],
    metadata={_VERSION_KEY: str(FORMAT_VERSION)},
)
_DELTA_COLUMNS = ("sequence", "position", "piece", "start_byte", "text_bytes", "num_tokens")


def sidecar_path(prefix: Path) -> Path:
    """Where the sidecar of a prefix lies, whether or not there is one."""
    return prefix.with_name(prefix.name + SUFFIX)


def as_table(pieces: Pieces, source: str, first_sequence: int) -> pa.Table:
    """Pieces of one source as rows of `SCHEMA`.

    Args:
        source: path of the source file, relative to the directory of the sidecar.
        first_sequence: index of the unit's first sequence in the corpus.
    """
    num_pieces = len(pieces.sequence_P)
    sources = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num_pieces, np.int32)), pa.array([source]))
    ids = pa.nulls(num_pieces, pa.string()) if pieces.ids is None else pa.array(pieces.ids, pa.string())
    domains = pa.nulls(num_pieces, pa.string()) if pieces.domains is None else pa.array(pieces.domains, pa.string())
    columns = [
        pa.array(pieces.sequence_P + first_sequence, pa.int64()),
        sources,
        pa.array(pieces.position_P, pa.int64()),
        pa.array(pieces.piece_P, pa.int32()),
        pa.array(pieces.start_byte_P, pa.int64()),
        pa.array(pieces.text_bytes_P, pa.int64()),
        pa.array(pieces.num_tokens_P, pa.int32()),
        pa.array(pieces.crc32_P, pa.uint32()),
        ids,
        domains.dictionary_encode(),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


class SidecarWriter:
    """Writes a sidecar as sequences are written; it is visible after `close` only. Use as a context manager.

    The caller holds the lock of the prefix (`IndexedWriter`), so that one process writes.
    """

    def __init__(self, prefix: Path) -> None:
        self._path = sidecar_path(prefix)
        self._temporary = self._path.with_name(f".{self._path.name}{TEMPORARY_SUFFIX}")
        self._stream = create_over(self._temporary)
        self._writer = pq.ParquetWriter(
            self._stream,
            SCHEMA,
            compression="zstd",
            use_dictionary=["source", "domain"],
            column_encoding=dict.fromkeys(_DELTA_COLUMNS, "DELTA_BINARY_PACKED"),
            write_page_checksum=True,
        )
        self._pending: list[pa.Table] = []
        self._num_pending = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if not self._stream.closed:
            with suppress(OSError):  # what a full disk did not take
                self._writer.close()  # or its finalizer complains that the file is closed
            with suppress(OSError):
                self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def append(self, table: pa.Table) -> None:
        """Add rows of `SCHEMA`."""
        if len(table) == 0:
            return
        self._pending.append(table)
        self._num_pending += len(table)
        while self._num_pending >= _ROW_GROUP_PIECES:
            self._write_row_group(_ROW_GROUP_PIECES)

    def close(self) -> dict[str, dict[str, Any]]:
        """Publish; returns the manifest's `files` entry."""
        if self._num_pending:
            self._write_row_group(self._num_pending)
        with named_in_errors(self._path):
            self._writer.close()
            os.fsync(self._stream.fileno())
            self._stream.close()
        publish(self._temporary, self._path)
        return {self._path.name: checksum_of(self._path)}

    def _write_row_group(self, num_pieces: int) -> None:
        """Write the first of the pending rows; bytes depend on the rows alone, not on the tables they came in."""
        pending = pa.concat_tables(self._pending)
        table, rest = pending.slice(0, num_pieces), pending.slice(num_pieces)
        for name in ("source", "domain"):  # a dictionary has what occurs in the row group, in that order
            values = table[name].cast(pa.string()).combine_chunks().dictionary_encode()
            table = table.set_column(SCHEMA.get_field_index(name), SCHEMA.field(name), values)
        with named_in_errors(self._path):
            self._writer.write_table(table.combine_chunks(), row_group_size=num_pieces)
        self._pending, self._num_pending = [rest], len(rest)


class Sidecar:
    """The sidecar of a corpus, or of the corpus that a view points into. Rows are verified as they are read.

    Args:
        path: the file.
        corpus: what it must describe, or a view of that; None leaves that comparison to the caller.

    Attributes:
        path: the file.
        num_pieces: rows.

    Raises:
        InputError: it does not exist.
        CorruptArtifactError: it is no sidecar, or damaged.
    """

    def __init__(self, path: Path, corpus: IndexedCorpus | None = None) -> None:
        self.path = path
        self._corpus = corpus
        self._file = _open(path)
        self.num_pieces: int = self._file.metadata.num_rows

    @classmethod
    def of(cls, corpus: IndexedCorpus) -> Self | None:
        """The sidecar beside a corpus's data; None if there is none."""
        path = sidecar_path(data_prefix(corpus.prefix))
        return cls(path, corpus) if path.exists() else None

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """All rows in order, a row group at a time.

        Raises:
            CorruptArtifactError: the file is damaged, or describes another corpus: every sequence's tokens are counted,
                and the checksums of some are compared with the data.
        """
        check = None if self._source is None else RowCheck(self.path, self._source)
        read = columns if columns is None or check is None else list(dict.fromkeys([*columns, *IDENTIFYING]))
        for group in range(self._file.num_row_groups):
            table = self._read(group, read)
            if check is not None and (mismatch := check.mismatch(table)):
                raise CorruptArtifactError(mismatch)
            yield table if columns is None else table.select(columns)
        if check is not None and (mismatch := check.mismatch_at_end()):
            raise CorruptArtifactError(mismatch)

    def group(self, place: int, columns: list[str]) -> pa.Table:
        """Some columns of one row group, without reading those before it.

        Raises:
            CorruptArtifactError: the file is damaged, or the checksums of some of these rows are not those of the data.
        """
        table = self._read(place, list(dict.fromkeys([*columns, *IDENTIFYING])))
        if self._source is not None and (mismatch := mismatch_of_some(self.path, self._source, table)):
            raise CorruptArtifactError(mismatch)
        return table.select(columns)

    @property
    def last_sequences(self) -> np.ndarray:
        """The last sequence of each row group, int64.

        Raises:
            CorruptArtifactError: the file does not say.
        """
        columns = [self._file.metadata.row_group(group).column(0) for group in range(self._file.num_row_groups)]
        if not all(column.statistics is not None and column.statistics.has_min_max for column in columns):
            raise CorruptArtifactError(f"{self.path} has row groups without statistics: {_REMEDY}")
        return np.array([column.statistics.max for column in columns], np.int64)

    def pieces_of(self, sequence: int) -> list[dict[str, Any]]:
        """The rows of one sequence, without reading the others' row groups.

        Raises:
            CorruptArtifactError: the file is damaged, or these are not the tokens that they describe.
        """
        rows: list[dict[str, Any]] = []
        for group in range(self._file.num_row_groups):
            statistics = self._file.metadata.row_group(group).column(0).statistics
            if statistics is None or not statistics.has_min_max or statistics.min <= sequence <= statistics.max:
                table = self._read(group, None)
                rows += table.filter(pyarrow.compute.equal(table["sequence"], sequence)).to_pylist()
        if self._source is not None and (mismatch := mismatch_of_sequence(self.path, self._source, sequence, rows)):
            raise CorruptArtifactError(mismatch)
        return rows

    def source_path(self, source: str) -> Path:
        """Where a source lies, from its path in the rows."""
        return Path(os.path.normpath(self.path.parent / source))

    @cached_property
    def _source(self) -> IndexedCorpus | None:
        """The corpus that holds the data."""
        if self._corpus is None or not self._corpus.is_view:
            return self._corpus
        return IndexedCorpus.open(data_prefix(self._corpus.prefix))

    def _read(self, group: int, columns: list[str] | None) -> pa.Table:
        described = self._file.metadata.row_group(group)
        if described.num_rows > _ROW_GROUP_PIECES or described.total_byte_size > _MAX_ROW_GROUP_BYTES:
            raise CorruptArtifactError(
                f"{self.path}, row group {group}: has {described.num_rows:,} rows and {described.total_byte_size:,} "
                f"bytes, expected at most {_ROW_GROUP_PIECES:,} and {_MAX_ROW_GROUP_BYTES:,}; {_REMEDY}"
            )
        try:
            most_bytes = self._most_bytes(group)
            if most_bytes > _MAX_ROW_GROUP_BYTES:
                raise ValueError(
                    f"its pages hold up to {most_bytes:,} bytes, expected at most {_MAX_ROW_GROUP_BYTES:,}"
                )
            table = self._file.read_row_group(group, columns=columns)
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            raise CorruptArtifactError(
                f"{self.path}, row group {group}: cannot be read ({one_line(error)}); {_REMEDY}"
            ) from None
        if fault := fault_of_values(table, SCHEMA):
            raise CorruptArtifactError(f"{self.path}, row group {group}: {fault}; {_REMEDY}")
        return table

    def _most_bytes(self, group: int) -> int:
        """The most that a row group may take in memory; raises ValueError where its pages are damaged."""
        described, most_bytes = self._file.metadata.row_group(group), 0
        with open_regular(self.path) as stream:
            for index, field in enumerate(SCHEMA):
                column = read_pages(stream, described.column(index))
                if pa.types.is_dictionary(field.type):  # read as such, so that no value is repeated
                    column = replace(column, repeated_bytes=0)
                most_bytes += column.most_bytes(described.num_rows)
        return most_bytes


def fill_domains_and_bytes(
    sidecar: Sidecar, source: IndexedCorpus, domain_N: np.ndarray, text_bytes_N: np.ndarray
) -> list[str]:
    """Domain and bytes of text of every sequence, from one pass over a sidecar.

    Args:
        source: the corpus that holds the data, N sequences; not a view of it.
        domain_N: zeros of an unsigned dtype; takes the code of each sequence's domain, of its last piece where pieces
            differ.
        text_bytes_N: zeros of an integer dtype; takes the bytes of UTF-8 of all pieces.

    Returns:
        The names of the domains by code; the first is NO_DOMAIN.

    Raises:
        InputError: there are more domains than codes.
        CorruptArtifactError: the sidecar is of another corpus.
    """
    max_domains = np.iinfo(domain_N.dtype).max + 1
    names: dict[str, int] = {NO_DOMAIN: 0}
    for table in sidecar.tables(["sequence", "text_bytes", "domain"]):
        sequence_P = table["sequence"].to_numpy()
        if len(sequence_P) and int(sequence_P.max()) >= len(source):
            raise CorruptArtifactError(
                f"{sidecar.path} has sequence {sequence_P.max()}, {source.prefix} only {len(source)}: it belongs to "
                "another corpus; copy both, or preprocess, again"
            )
        np.add.at(text_bytes_N, sequence_P, table["text_bytes"].to_numpy())
        column = table["domain"].combine_chunks()
        found = [NO_DOMAIN if name is None else name for name in column.dictionary.to_pylist()]
        codes = np.array([names.setdefault(name, len(names)) for name in found] + [0])
        if len(names) > max_domains:
            raise InputError(f"{sidecar.path} has more than {max_domains:,} domains: choose another --domain-key")
        domain_N[sequence_P] = codes[column.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)]
    return list(names)


def find_mismatch(
    sidecar: Sidecar, corpus: IndexedCorpus, advance: Callable[[int], object] = lambda num_bytes: None
) -> str | None:
    """The first sequence of a corpus whose tokens are not those that its sidecar describes; about 1 GB/s.

    Args:
        advance: called with every number of bytes of the `.bin` that were read.

    Returns:
        A message that names the file and the sequence; None if all agree.
    """
    check = RowCheck(sidecar.path, corpus)
    for table in sidecar.tables(list(IDENTIFYING)):
        before = check.num_tokens
        if mismatch := check.mismatch(table, num_sampled=None):
            return mismatch
        advance((check.num_tokens - before) * corpus.token_dtype.itemsize)
        corpus.forget_pages()
    return check.mismatch_at_end()


_REMEDY = "copy it again, or preprocess again"


def _open(path: Path) -> pq.ParquetFile:
    if not path.exists():
        raise InputError(f"{path} does not exist: preprocess again to make it")
    open_regular(path).close()
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        schema = file.schema_arrow
        version = (schema.metadata or {}).get(_VERSION_KEY, b"none").decode("utf-8", "replace")
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise CorruptArtifactError(f"{path} is not a whole Parquet file ({one_line(error)}): {_REMEDY}") from None
    if version not in _READABLE_VERSIONS:
        raise CorruptArtifactError(
            f"{path} has sidecar format {version}, this release reads {' and '.join(_READABLE_VERSIONS)}: preprocess "
            "again, or use the release that wrote it"
        )
    if twice := [name for name in schema.names if schema.names.count(name) > 1]:
        raise CorruptArtifactError(f"{path} has more than one column {twice[0]}: {_REMEDY}")
    found, expected = ({field.name: str(field.type) for field in each} for each in (schema, SCHEMA))
    if list(found) != list(expected) or found != expected:
        wrong = next((name for name in expected if found.get(name) != expected[name]), next(iter(found), "none"))
        raise CorruptArtifactError(
            f"{path} has column {wrong} of type {found.get(wrong, 'none')}, expected {expected.get(wrong, 'none')}: "
            f"{_REMEDY}"
        )
    return file
