"""Units of work: walking through a span in order, which is cheap, and getting at the lines of one unit.

A unit of plain JSONL is only named, so that whoever works on it does the reading; compressed and columnar files are
decompressed on the way, since they cannot be entered in the middle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, BinaryIO

from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.compressed import decompressed, whole_lines
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.parquet_text import ParquetText
from megatron_miniplm.corpus.sources import UNIT_BYTES, Source, Span, row_group_runs

#: Longer lines are not read: memory must not grow with what a damaged or hostile file holds.
MAX_LINE_BYTES = 256 << 20
_RUN_BYTES = 1 << 20  # of lines, parsed at once
_PIECE_BYTES = 1 << 22  # read at once where lines are only counted


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of work that depends on nothing else.

    Attributes:
        start: first byte of the uncompressed text, or first row.
        stop: of plain JSONL: the unit has the lines that start in [start, stop).
        content: the whole lines of compressed JSONL, or the rows of Parquet as a table; None for plain JSONL.
        size_bytes: what it takes of the file on disk, for progress.
        is_overlong: one line of compressed JSONL that is too long to be read; `stop` is then the byte behind `start`.
    """

    span: Span
    start: int
    stop: int
    content: Any
    size_bytes: int
    is_overlong: bool = False

    @property
    def source(self) -> Source:
        return self.span.source


def units_of(span: Span, fields: Fields, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Unit]:
    """The units of a span, in order; a unit without a line is left out if that costs nothing to know.

    Args:
        fields: of Parquet, only their columns are read.
        max_line_bytes: of compressed JSONL, a longer line is a unit of its own, with `is_overlong`.

    Raises:
        InputError: a compressed file is truncated or damaged, or a column is missing.
    """
    if span.source.format == "parquet":
        yield from parquet_units(span, fields)
    elif span.source.compression is not None:
        yield from compressed_units(span, max_line_bytes)
    else:
        for start in range(span.start, span.stop, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, span.stop)
            yield Unit(span=span, start=start, stop=stop, content=None, size_bytes=stop - start)


def lines_of(unit: Unit, max_line_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a unit in runs that a cache can hold, with the byte at which each run starts.

    In place of a line that is much longer than `max_line_bytes` there is None.
    """
    if unit.is_overlong:
        yield unit.start, None
        return
    if unit.content is not None:
        yield unit.start, unit.content
        return
    with open_regular(unit.source.path) as stream:
        position = unit.start
        if position > 0:
            stream.seek(position - 1)
            position += _skip_line(stream) - 1
        while position < unit.stop:
            lines = stream.read(min(_RUN_BYTES, unit.stop - position))
            if not lines:
                return
            rest = b"" if lines.endswith(b"\n") else stream.readline(max_line_bytes + 1)
            if len(rest) <= max_line_bytes or rest.endswith(b"\n"):
                lines += rest
                yield position, lines
                position += len(lines)
                continue
            line_start = lines.rfind(b"\n") + 1
            if line_start:
                yield position, lines[:line_start]
            yield position + line_start, None
            position += len(lines) + len(rest) + _skip_line(stream)


def _skip_line(stream: BinaryIO) -> int:
    """Read on behind the next newline, or to the end; returns how many bytes that took."""
    num_skipped = 0
    while piece := stream.readline(_RUN_BYTES):
        num_skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return num_skipped


def count_lines(source: Source, stop: int) -> int:
    """Number of lines of a plain JSONL file that start before a byte."""
    num_lines, position = 0, 0
    with open(source.path, "rb") as stream:
        while position < stop - 1 and (piece := stream.read(min(_PIECE_BYTES, stop - 1 - position))):
            num_lines += piece.count(b"\n")
            position += len(piece)
    return num_lines + (stop > 0)


def compressed_units(span: Span, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[Unit]:
    source = span.source
    assert source.compression is not None
    with decompressed(source.path, source.compression) as (read, num_read):
        done_bytes = 0
        for start, lines in whole_lines(read, unit_bytes=UNIT_BYTES, max_line_bytes=max_line_bytes):
            size_bytes, done_bytes = num_read() - done_bytes, num_read()
            stop = start + (1 if lines is None else len(lines))
            yield Unit(
                span=span, start=start, stop=stop, content=lines, size_bytes=size_bytes, is_overlong=lines is None
            )


def parquet_units(span: Span, fields: Fields) -> Iterator[Unit]:
    file = ParquetText(span.source.path)
    columns = file.columns_of(fields)
    rows_before = [0, *accumulate(file.group_rows)]
    size_per_row = span.source.size_bytes / max(1, rows_before[-1])
    for first, stop in row_group_runs(span.source.path):
        if not span.start <= first < span.stop:
            continue
        num_rows = rows_before[stop] - rows_before[first]
        num_units = -(-sum(file.group_bytes[first:stop]) // UNIT_BYTES)
        row = rows_before[first]
        for table in file.batches(range(first, stop), columns, max(1, num_rows // max(1, num_units))):
            size_bytes = int((row + len(table)) * size_per_row) - int(row * size_per_row)
            yield Unit(span=span, start=row, stop=row + len(table), content=table, size_bytes=size_bytes)
            row += len(table)
