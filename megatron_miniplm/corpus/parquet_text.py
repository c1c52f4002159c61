"""Text in Parquet files: the one place that reads them, where whatever pyarrow raises becomes an error of the user's.

pyarrow raises its own kinds, OSError, KeyError, UnicodeDecodeError and others for files that are damaged or odd, so
nothing here is caught by type.

A small file can hold gigabytes of text, and one of its pages can repeat a text without end. The number of rows that are
read at once is therefore chosen by what their pages can decode to (`artifacts/parquet_pages.py`).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.parquet_pages import ColumnPages, read_pages, rows_within
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.fields import BadLine, Fields, heads_of, names_shown
from megatron_miniplm.errors import InputError, MiniPLMError, one_line

#: What rows that are read at once may take, unless a single one takes more.
MAX_BATCH_BYTES = 256 << 20
#: Rows without text take memory as well.
MAX_BATCH_ROWS = 1 << 17


class ParquetText:
    """An open Parquet file.

    Attributes:
        group_rows: rows of each row group.
        group_bytes: uncompressed size of each row group.

    Raises:
        InputError: it is not a Parquet file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._path = path
        with self._readable("is not a whole Parquet file"):
            self._file = pyarrow.parquet.ParquetFile(pyarrow.OSFile(os.fsencode(path)))
            metadata = self._file.metadata
            groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
            self.group_rows: list[int] = [group.num_rows for group in groups]
            self.group_bytes: list[int] = [group.total_byte_size for group in groups]
            self._schema = self._file.schema_arrow
            leaves = [self._file.schema.column(leaf) for leaf in range(metadata.num_columns)]
            self._leaves: list[str] = [leaf.path for leaf in leaves]
            self._is_list = [leaf.max_repetition_level > 0 for leaf in leaves]
            self._names: list[str] = self._schema.names

    def columns_of(self, fields: Fields) -> list[str]:
        """The columns that hold the fields.

        Raises:
            InputError: one is missing, stands there more than once, or cannot hold text.
        """
        columns = {key: next((name for name in heads_of(key) if name in self._names), None) for key in fields.keys}
        for key, column in columns.items():
            if column is None:
                raise InputError(
                    f"{self._path}: expected the column {key!r}, found {names_shown(self._names)}: name the column of "
                    "the text in --json-keys, those of labels in --id-key and --domain-key"
                )
            if (count := self._names.count(column)) > 1:
                raise InputError(
                    f"{self._path}: the column {column!r} stands there {count} times: write the file again with one"
                )
            if key in fields.text_keys and column == key and not _holds_text(found := self._schema.field(key).type):
                raise InputError(
                    f"{self._path}: expected text in the column {key!r}, found the type {found}: cast the column to "
                    "string, or name another one in --json-keys"
                )
        # Of an object only the field is read, where it has that field.
        names = [key if self._leaves_of(key) else column for key, column in columns.items() if column is not None]
        for name in names:
            if any(self._is_list[leaf] for leaf in self._leaves_of(name)):
                raise InputError(
                    f"{self._path}: expected text or labels in the column {name.partition('.')[0]!r}, found lists: "
                    "name a field outside of them"
                )
        return list(dict.fromkeys(names))

    def batches(self, groups: Sequence[int], columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
        """The rows of some row groups as pyarrow tables, of `batch_rows` rows or less.

        Memory: a table takes at most `MAX_BATCH_BYTES`, or has one row; pages are read one at a time.

        Raises:
            InputError: they cannot be read, or a page is too large.
        """
        import pyarrow

        tables: list[Any] = []
        num_rows = num_bytes = 0
        batch_rows = min(batch_rows, MAX_BATCH_ROWS)
        for table in self._small_batches(groups, columns, batch_rows):
            if tables and (num_rows + len(table) > batch_rows or num_bytes + table.nbytes > MAX_BATCH_BYTES):
                yield pyarrow.concat_tables(tables)
                tables, num_rows, num_bytes = [], 0, 0
            tables.append(table)
            num_rows, num_bytes = num_rows + len(table), num_bytes + table.nbytes
        if tables:
            yield pyarrow.concat_tables(tables)

    def _small_batches(self, groups: Sequence[int], columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
        """Rows as tables that are certain to take at most `MAX_BATCH_BYTES`, or have one row."""
        import pyarrow

        for group in groups:
            with self._readable(f"row group {group} cannot be read"):
                num_rows = rows_within(self._pages(group, columns), MAX_BATCH_BYTES, batch_rows)
                found = self._file.iter_batches(num_rows, row_groups=[group], columns=list(columns))
            while True:
                with self._readable(f"row group {group} cannot be read"):
                    batch = next(found, None)
                    table = None if batch is None else _without_dictionaries(pyarrow.Table.from_batches([batch]))
                if table is None:
                    break
                yield table

    def _pages(self, group: int, columns: Sequence[str]) -> list[ColumnPages]:
        metadata = self._file.metadata.row_group(group)
        leaves = sorted({leaf for name in columns for leaf in self._leaves_of(name)})
        with open_regular(self._path) as stream:
            return [read_pages(stream, metadata.column(leaf)) for leaf in leaves]

    def _leaves_of(self, name: str) -> list[int]:
        """The columns of the file that make up a column or field."""
        return [leaf for leaf, path in enumerate(self._leaves) if path == name or path.startswith(f"{name}.")]

    @contextmanager
    def _readable(self, fault: str) -> Iterator[None]:
        try:
            yield
        except MiniPLMError:
            raise
        except Exception as error:
            raise InputError(f"{self._path} {fault} ({one_line(error)}): copy or write the file again") from None


def _without_dictionaries(table: Any) -> Any:
    """A table that takes what its values take: indices into a dictionary would hide it."""
    for index, field in enumerate(table.schema):
        if (plain := _plain_type(field.type)) != field.type:
            table = table.set_column(index, field.name, table.column(index).cast(plain))
    return table


def _plain_type(kind: Any) -> Any:
    """A type without dictionaries."""
    import pyarrow

    if pyarrow.types.is_dictionary(kind):
        return kind.value_type
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_plain_type(field.type)) for field in kind])
    return kind


def rows_of(table: Any) -> list[dict[str, Any] | BadLine]:
    """The rows of a table as Python values, each a dictionary, or why it has none."""
    try:
        columns = {name: table.column(name).to_pylist() for name in table.column_names}
    except Exception:  # some value; find out which
        return [_row_of(table, index) for index in range(table.num_rows)]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _row_of(table: Any, index: int) -> dict[str, Any] | BadLine:
    row = {}
    for name in table.column_names:
        try:
            row[name] = table.column(name)[index].as_py()
        except UnicodeDecodeError as error:
            byte = error.object[error.start]
            return BadLine(
                f"expected UTF-8 under {name!r}, found byte 0x{byte:02x} at byte {error.start}: convert the text to "
                "UTF-8"
            )
        except Exception as error:  # a date beyond Python's, a map with a key twice, ...
            return BadLine(f"the value under {name!r} cannot be read ({one_line(error)}): fix or remove the row")
    return row


def _holds_text(kind: Any) -> bool:
    """Whether a column's type is text, or bytes, which are read as UTF-8."""
    from pyarrow import types

    value = kind.value_type if types.is_dictionary(kind) else kind
    checks = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_null,
        types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary,
    )  # fmt: skip
    return any(check(value) for check in checks)
