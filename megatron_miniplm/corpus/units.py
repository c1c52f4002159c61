"""Units of work: walking through a span in order, which is cheap, and getting at the lines of one unit.

A unit of plain JSONL is only named, so that whoever works on it does the reading; compressed and columnar files are
decompressed on the way, since they cannot be entered in the middle.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_miniplm.corpus.sources import UNIT_BYTES, Source, Span, open_parquet, row_group_runs
from megatron_miniplm.errors import InputError

_PIECE_BYTES = 1 << 22  # of decompressed text, read at once
_RUN_BYTES = 1 << 20  # of lines, parsed at once


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A piece of work that depends on nothing else.

    Attributes:
        start: first byte of the uncompressed text, or first row.
        stop: of plain JSONL: the unit has the lines that start in [start, stop).
        content: the whole lines of compressed JSONL, or the rows of Parquet as a table; None for plain JSONL.
        size_bytes: what it takes of the file on disk, for progress.
    """

    span: Span
    start: int
    stop: int
    content: Any
    size_bytes: int

    @property
    def source(self) -> Source:
        return self.span.source


def units_of(span: Span, columns: Sequence[str]) -> Iterator[Unit]:
    """The units of a span, in order; a unit without a line is left out if that costs nothing to know.

    Args:
        columns: which are read, `UnitReader.columns`; of Parquet only.

    Raises:
        InputError: a compressed file is truncated or damaged, or a column is missing.
    """
    if span.source.format == "parquet":
        yield from parquet_units(span, columns)
    elif span.source.compression is not None:
        yield from compressed_units(span)
    else:
        for start in range(span.start, span.stop, UNIT_BYTES):
            stop = min(start + UNIT_BYTES, span.stop)
            yield Unit(span=span, start=start, stop=stop, content=None, size_bytes=stop - start)


def lines_of(unit: Unit) -> Iterator[tuple[int, bytes]]:
    """The lines of a unit in runs that a cache can hold, with the byte at which each run starts."""
    if unit.content is not None:
        yield unit.start, unit.content
        return
    with open(unit.source.path, "rb") as stream:
        position = unit.start
        if position > 0:
            stream.seek(position - 1)
            position += len(stream.readline()) - 1
        while position < unit.stop:
            lines = stream.read(min(_RUN_BYTES, unit.stop - position))
            if not lines.endswith(b"\n"):
                lines += stream.readline()
            if not lines:
                return
            yield position, lines
            position += len(lines)


def count_lines(source: Source, stop: int) -> int:
    """Number of lines of a plain JSONL file that start before a byte."""
    num_lines, position = 0, 0
    with open(source.path, "rb") as stream:
        while position < stop - 1 and (piece := stream.read(min(_PIECE_BYTES, stop - 1 - position))):
            num_lines += piece.count(b"\n")
            position += len(piece)
    return num_lines + (stop > 0)


def compressed_units(span: Span) -> Iterator[Unit]:
    import pyarrow

    source = span.source
    try:
        with pyarrow.OSFile(str(source.path)) as raw, pyarrow.CompressedInputStream(raw, source.compression) as stream:
            done_bytes = 0
            for start, lines in _whole_lines(stream):
                size_bytes, done_bytes = raw.tell() - done_bytes, raw.tell()
                yield Unit(span=span, start=start, stop=start + len(lines), content=lines, size_bytes=size_bytes)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            f"{source.path} cannot be decompressed ({error}): it is truncated or damaged; copy or compress it again"
        ) from None


def _whole_lines(stream: Any) -> Iterator[tuple[int, bytes]]:
    """The position and the lines of every unit of a stream; a unit in which no line starts is left out."""
    start, pending = 0, bytearray()
    while piece := stream.read(_PIECE_BYTES):
        searched = len(pending)
        pending += piece
        while True:
            edge = (start // UNIT_BYTES + 1) * UNIT_BYTES - start  # the next unit, as seen from the first pending byte
            newline = pending.find(b"\n", max(edge - 1, searched))
            if newline < 0:
                break
            yield start, bytes(pending[: newline + 1])
            start += newline + 1
            del pending[: newline + 1]
            searched = 0
    if pending:
        yield start, bytes(pending)


def parquet_units(span: Span, columns: Sequence[str]) -> Iterator[Unit]:
    import pyarrow

    file = open_parquet(span.source.path)
    metadata, present = file.metadata, file.schema_arrow.names
    if missing := [name for name in columns if name not in present]:
        raise InputError(
            f"{span.source.path}: expected the column {missing[0]!r}, found {', '.join(map(repr, present))}: name the "
            "column of the text in --json-keys, those of labels in --id-key and --domain-key"
        )
    rows_before = [0]
    for group in range(metadata.num_row_groups):
        rows_before.append(rows_before[-1] + metadata.row_group(group).num_rows)
    size_per_row = span.source.size_bytes / max(1, metadata.num_rows)
    for first, stop in row_group_runs(span.source.path):
        if not span.start <= first < span.stop:
            continue
        num_rows = rows_before[stop] - rows_before[first]
        num_units = -(-sum(metadata.row_group(group).total_byte_size for group in range(first, stop)) // UNIT_BYTES)
        batch_rows = max(1, num_rows // max(1, num_units))
        row = rows_before[first]
        try:
            for batch in file.iter_batches(batch_rows, row_groups=list(range(first, stop)), columns=list(columns)):
                table = pyarrow.Table.from_batches([batch])
                size_bytes = int((row + len(batch)) * size_per_row) - int(row * size_per_row)
                yield Unit(span=span, start=row, stop=row + len(batch), content=table, size_bytes=size_bytes)
                row += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{span.source.path}, row group {first}: cannot be read ({error}): copy or write the file again"
            ) from None
