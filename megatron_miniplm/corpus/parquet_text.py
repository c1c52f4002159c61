"""Text in Parquet files: the one place that reads them, where whatever pyarrow raises becomes an error of the user's.

pyarrow raises its own kinds, OSError, KeyError, UnicodeDecodeError and others for files that are damaged or odd, so
nothing here is caught by type.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megatron_miniplm.corpus.fields import BadLine, Fields, heads_of, names_shown
from megatron_miniplm.errors import InputError, MiniPLMError


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
        return list(dict.fromkeys(column for column in columns.values() if column is not None))

    def batches(self, groups: Sequence[int], columns: Sequence[str], batch_rows: int) -> Iterator[Any]:
        """The rows of some row groups as pyarrow tables.

        Raises:
            InputError: they cannot be read.
        """
        import pyarrow

        with self._readable(f"row group {groups[0]} cannot be read"):
            found = self._file.iter_batches(batch_rows, row_groups=list(groups), columns=list(columns))
        while True:
            with self._readable(f"row group {groups[0]} cannot be read"):
                batch = next(found, None)
                if batch is None:
                    return
                table = pyarrow.Table.from_batches([batch])
            yield table

    @contextmanager
    def _readable(self, fault: str) -> Iterator[None]:
        try:
            yield
        except MiniPLMError:
            raise
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{self._path} {fault} ({text}): copy or write the file again") from None


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
            return BadLine(f"the value under {name!r} cannot be read ({error}): fix or remove the row")
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
