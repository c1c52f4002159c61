"""How much memory the rows of a Parquet file may take, from the headers of its pages.

The sizes in the footer of a file are not checked by anybody, and say nothing of what values take once they are
decoded: a page of indices into a dictionary repeats one long value as often as it likes. Pages say how many bytes they
have uncompressed and how their values are encoded; that is what a reader allocates by.

The format (github.com/apache/parquet-format): every page starts with a `PageHeader` in Thrift's compact protocol.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import numpy as np

#: A larger page is refused; writers start a new one after a megabyte, or after some hundred values.
MAX_PAGE_BYTES = 1 << 30

_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_V2 = 0, 2, 3
_DICTIONARY_ENCODINGS = (2, 8)
_DELTA_BYTE_ARRAY = 7
_STRUCT, _MAX_DEPTH, _MAX_ELEMENTS = 12, 8, 1 << 16
#: Validity, offset and levels of a value.
_OVERHEAD_BYTES = 16


class _Page(NamedTuple):
    """A page: `kind` and `encoding` as in parquet.thrift; `num_bytes` uncompressed."""

    kind: int
    num_values: int
    num_bytes: int
    encoding: int


@dataclass(frozen=True, kw_only=True)
class ColumnPages:
    """What the pages of one column of a row group may decode to. Axis: P data pages.

    Attributes:
        values_P: number of values, which are rows in a column without lists.
        bytes_P: what all values of a page take together, as far as each is stored once.
        repeated_bytes: what one value may take that pages repeat; 0 without such pages.
        dictionary_bytes: of the dictionary page; 0 without one.
    """

    values_P: np.ndarray
    bytes_P: np.ndarray
    repeated_bytes: int
    dictionary_bytes: int

    def most_bytes(self, num_rows: int) -> int:
        """The most that so many rows, wherever they start, may take."""
        stored = self.dictionary_bytes
        if len(self.bytes_P):
            # From the last row of each page: the pages in which these rows can end.
            starts_P = np.cumsum(self.values_P) - self.values_P
            last_P = np.searchsorted(starts_P, starts_P + self.values_P - 1 + num_rows, side="left")
            sums_P = np.concatenate(([0], np.cumsum(self.bytes_P)))
            stored += int((sums_P[last_P] - sums_P[:-1]).max())
        return stored + num_rows * (self.repeated_bytes + _OVERHEAD_BYTES)


def read_pages(stream: BinaryIO, column: Any) -> ColumnPages:
    """Read the headers of all pages of a column.

    Args:
        stream: of the file.
        column: its metadata in one row group, a `pyarrow.parquet.ColumnChunkMetaData`.

    Raises:
        ValueError: the headers are damaged, or a page has more than `MAX_PAGE_BYTES`.
    """
    pages = list(_pages(stream, column))
    dictionary_bytes = max((page.num_bytes for page in pages if page.kind == _DICTIONARY_PAGE), default=0)
    is_text = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
    data = [page for page in pages if page.kind != _DICTIONARY_PAGE]
    repeated_bytes = 0
    for page in data:
        if is_text and page.encoding in _DICTIONARY_ENCODINGS:
            repeated_bytes = max(repeated_bytes, dictionary_bytes)
        elif page.encoding == _DELTA_BYTE_ARRAY:  # a value begins with as much of the one before as it likes
            repeated_bytes = max(repeated_bytes, page.num_bytes)
    return ColumnPages(
        values_P=np.array([page.num_values for page in data], np.int64),
        bytes_P=np.array([page.num_bytes for page in data], np.int64),
        repeated_bytes=repeated_bytes,
        dictionary_bytes=dictionary_bytes,
    )


def rows_within(columns: Sequence[ColumnPages], max_bytes: int, most_rows: int) -> int:
    """The number of rows to read at once, so that they take at most so many bytes; at least 1."""
    num_rows = max(1, most_rows)
    while num_rows > 1 and sum(column.most_bytes(num_rows) for column in columns) > max_bytes:
        num_rows //= 2
    return num_rows


def _pages(stream: BinaryIO, column: Any) -> Iterator[_Page]:
    """The pages of a column up to its last value, where readers stop as well."""
    place, num_values = column.data_page_offset, 0
    if column.dictionary_page_offset is not None and 0 < column.dictionary_page_offset < place:
        place = column.dictionary_page_offset
    stop = place + column.total_compressed_size
    while place < stop and num_values < column.num_values:
        stream.seek(place)
        header = _read_struct(stream, depth=0)
        kind, num_bytes, compressed_bytes = (_size(header.get(field), place) for field in (1, 2, 3))
        if num_bytes > MAX_PAGE_BYTES:
            raise ValueError(f"the page at byte {place} has {num_bytes:,} bytes, the limit is {MAX_PAGE_BYTES:,}")
        described = header.get({_DATA_PAGE: 5, _DICTIONARY_PAGE: 7, _DATA_PAGE_V2: 8}.get(kind, 0))
        if isinstance(described, dict):
            found = _size(described.get(1), place)
            encoding = _size(described.get(4 if kind == _DATA_PAGE_V2 else 2), place)
            yield _Page(kind, found, num_bytes, encoding)
            num_values += found if kind != _DICTIONARY_PAGE else 0
        place = stream.tell() + compressed_bytes


def _size(value: Any, place: int) -> int:
    if not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise ValueError(f"the header of the page at byte {place} is damaged")
    return value


def _read_struct(stream: BinaryIO, *, depth: int) -> dict[int, Any]:
    """Integers and structs of a struct in Thrift's compact protocol, by field; of other fields, None."""
    if depth > _MAX_DEPTH:
        raise ValueError("structs nest too deep")
    values: dict[int, Any] = {}
    field = 0
    while (first := _read_byte(stream)) != 0:
        field = field + (first >> 4) if first >> 4 else _read_signed(stream)
        values[field] = _read_value(stream, first & 0xF, depth=depth)
    return values


def _read_value(stream: BinaryIO, kind: int, *, depth: int) -> Any:
    match kind:
        case 1 | 2:  # true and false
            return None
        case 3:
            return _read_byte(stream)
        case 4 | 5 | 6:
            return _read_signed(stream)
        case 7:
            stream.seek(8, 1)
        case 8:
            stream.seek(_read_unsigned(stream), 1)
        case 9 | 10:
            first = _read_byte(stream)
            count = first >> 4 if first >> 4 < 15 else _read_unsigned(stream)
            if count > _MAX_ELEMENTS:
                raise ValueError(f"a list of {count} elements in the header of a page")
            for _ in range(count):
                # A boolean takes a byte here.
                _read_value(stream, 3 if first & 0xF in (1, 2) else first & 0xF, depth=depth + 1)
        case _ if kind == _STRUCT:
            return _read_struct(stream, depth=depth + 1)
        case _:
            raise ValueError(f"the header of a page has a field of type {kind}")
    return None


def _read_byte(stream: BinaryIO) -> int:
    byte = stream.read(1)
    if not byte:
        raise ValueError("the file ends within the header of a page")
    return byte[0]


def _read_unsigned(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _read_byte(stream)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ValueError("a number of more than 64 bits in the header of a page")


def _read_signed(stream: BinaryIO) -> int:
    value = _read_unsigned(stream)
    return value >> 1 ^ -(value & 1)
