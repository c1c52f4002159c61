"""Documents of JSONL and Parquet files, unit by unit, each line checked before anything is encoded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.fields import BadLine, Fields, heads_of, json_type, label_of, text_of
from megatron_miniplm.corpus.parquet_text import rows_of
from megatron_miniplm.corpus.sources import Source, Span, expand_inputs, whole_span
from megatron_miniplm.corpus.units import (
    MAX_LINE_BYTES,
    Unit,
    compressed_units,
    count_lines,
    lines_of,
    parquet_units,
    units_of,
)
from megatron_miniplm.errors import InputError

#: For files that were read within a bound already.
_NO_BOUND = 1 << 60


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A line that cannot be used.

    Attributes:
        index: number of the line in its unit, from 0.
        position: byte of the uncompressed text at which the line starts, or row.
    """

    index: int
    position: int
    reason: str


@dataclass(kw_only=True)
class Documents:
    """What a unit holds.

    Attributes:
        texts: for each key, the text of every document, in order.
        positions: for every document, the byte of the uncompressed text at which its line starts, or its row from 0.
        ids, domains: of every document; None if they were not asked for.
        num_lines: of the unit, or rows, with those that are blank or rejected.
    """

    texts: dict[str, list[str]]
    positions: list[int] = field(default_factory=list)
    ids: list[str] | None = None
    domains: list[str] | None = None
    rejected: list[Rejected] = field(default_factory=list)
    num_lines: int = 0


class UnitReader:
    """Reads units; holds what depends on the fields alone.

    Args:
        max_line_bytes: longer lines, and longer texts of Parquet, are rejected.
    """

    def __init__(self, fields: Fields, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._fields = fields
        self._labels = (fields.id_key, fields.domain_key)
        self._max_line_bytes = max_line_bytes
        self._is_flat = all("." not in key for key in fields.text_keys)
        heads = {head for key in fields.keys if "." in key for head in heads_of(key)}
        texts = set(fields.text_keys) - heads
        self._names = {name: f"field_{number}" for number, name in enumerate(sorted({*fields.keys, *heads}))}
        types = [(field_name, str if name in texts else Any) for name, field_name in self._names.items()]
        required = [pair for pair in types if pair[1] is str]
        optional = [(*pair, msgspec.UNSET) for pair in types if pair[1] is not str]
        rename = {field_name: name for name, field_name in self._names.items()}
        record = msgspec.defstruct("Record", [*required, *optional], rename=rename)
        self._decode = msgspec.json.Decoder(record).decode

    def read(self, unit: Unit) -> Documents:
        """The documents of a unit; lines of white space only are no documents."""
        documents = Documents(texts={key: [] for key in self._fields.text_keys})
        documents.ids, documents.domains = ([] if key else None for key in self._labels)
        if unit.source.format == "parquet":
            self._read_rows(unit, documents)
        else:
            for position, lines in lines_of(unit, self._max_line_bytes):
                if lines is None:
                    self._reject_overlong(documents, documents.num_lines, position)
                    documents.num_lines += 1
                else:
                    self._read_lines(lines, position, documents)
        return documents

    def _read_lines(self, data: bytes, position: int, documents: Documents) -> None:
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        first_index, documents.num_lines = documents.num_lines, documents.num_lines + len(lines)
        for index, line in enumerate(lines, start=first_index):
            start, position = position, position + len(line) + 1
            if not line or line.isspace():
                continue
            if len(line) > self._max_line_bytes:
                self._reject_overlong(documents, index, start)
                continue
            try:
                texts, labels = self._values_of_line(line)
            except BadLine as error:
                documents.rejected.append(Rejected(index=index, position=start, reason=str(error)))
                continue
            _append(documents, start, texts, labels)

    def _values_of_line(self, line: bytes) -> tuple[list[str], list[str | None]]:
        try:
            record = self._decode(line)
            if not line.isascii():
                line.decode("utf-8")
            if self._is_flat and self._labels == (None, None):
                return [getattr(record, self._names[key]) for key in self._fields.text_keys], [None, None]
            values = ((name, getattr(record, field_name)) for name, field_name in self._names.items())
            return self._values_of({name: value for name, value in values if value is not msgspec.UNSET})
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, BadLine):  # judge it by Python's own parser
            return self._values_of(_parse_line(line))

    def _values_of(self, document: dict[str, Any]) -> tuple[list[str], list[str | None]]:
        texts = [text_of(document, key) for key in self._fields.text_keys]
        return texts, [label_of(document, key) for key in self._labels]

    def _read_rows(self, unit: Unit, documents: Documents) -> None:
        rows = rows_of(unit.content)
        documents.num_lines = len(rows)
        for index, row in enumerate(rows):
            try:
                if isinstance(row, BadLine):
                    raise row
                texts, labels = self._values_of(row)
                if any(len(text) > self._max_line_bytes for text in texts):
                    raise self._overlong()
            except BadLine as error:
                documents.rejected.append(Rejected(index=index, position=unit.start + index, reason=str(error)))
                continue
            _append(documents, unit.start + index, texts, labels)

    def _reject_overlong(self, documents: Documents, index: int, position: int) -> None:
        documents.rejected.append(Rejected(index=index, position=position, reason=str(self._overlong())))

    def _overlong(self) -> BadLine:
        return BadLine(
            f"expected at most {self._max_line_bytes:,} bytes, found a longer line: remove it, or give a larger "
            "--max-line-bytes"
        )


def read_texts(sources: Sequence[Source], keys: Sequence[str], max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[str]:
    """The texts of all sources, unit by unit, in each key by key.

    Raises:
        InputError: an input cannot be read; at the first bad line.
    """
    fields = Fields(text_keys=tuple(keys))
    reader = UnitReader(fields, max_line_bytes)
    for source in sources:
        span = whole_span(source)
        counter = LineCounter(span)
        for unit in units_of(span, fields, max_line_bytes):
            documents = reader.read(unit)
            if documents.rejected:
                raise InputError(counter.describe(documents.rejected[0]))
            counter.advance(documents.num_lines)
            for texts in documents.texts.values():
                yield from texts


class LineCounter:
    """Numbers the lines of a span for people; those before a span that starts inside a file are counted if needed."""

    def __init__(self, span: Span) -> None:
        self.span = span
        self._num_lines = 0
        self._num_before: int | None = 0 if span.start == 0 else None

    def advance(self, num_lines: int) -> None:
        """Go on behind a unit."""
        self._num_lines += num_lines

    def line(self, rejected: Rejected) -> int:
        """Number of a line of the present unit, from 1; of a row, from 0."""
        if self.span.source.format == "parquet":
            return rejected.position
        if self._num_before is None:
            self._num_before = count_lines(self.span.source, self.span.start)
        return self._num_before + self._num_lines + rejected.index + 1

    def describe(self, rejected: Rejected) -> str:
        """`FILE, line N: REASON`."""
        line = "row" if self.span.source.format == "parquet" else "line"
        return f"{self.span.source.path}, {line} {self.line(rejected)}: {rejected.reason}"


def _append(documents: Documents, position: int, texts: list[str], labels: list[str | None]) -> None:
    documents.positions.append(position)
    for column, text in zip(documents.texts.values(), texts, strict=True):
        column.append(text)
    for values, label in zip((documents.ids, documents.domains), labels, strict=True):
        if values is not None and label is not None:
            values.append(label)


def _parse_line(line: bytes) -> dict[str, Any]:
    """A line as Python's own `json` reads it, on which Megatron's preprocessor stands: `NaN` is a number there."""
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadLine(
            f"expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start} of the line: "
            "convert the file to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        if b"\0" in line:
            raise BadLine("expected one JSON object a line, found NUL bytes: copy or write the file again") from None
        raise BadLine(f"expected one JSON object a line, but it is not JSON ({error}): fix or remove it") from None
    if not isinstance(document, dict):
        raise BadLine(f"expected a JSON object, found {json_type(document)}: put the text under a key")
    return document


def read_document(path: Path, position: int, key: str) -> tuple[str, int]:
    """One document's text again, from where a sidecar says that it lies.

    A plain file is entered at the byte; a compressed one is decompressed up to it.

    Args:
        position: byte of the uncompressed text at which the line starts, or row.
        key: under which the text is.

    Returns:
        The text, and the number of the line from 1, or of the row from 0.

    Raises:
        InputError: the file is not there, or has no such document at this place.
    """
    (source,) = expand_inputs([path])
    found = _row_at(source, position, key) if source.format == "parquet" else _line_at(source, position)
    if found is not None:
        content, number = found
        try:
            if isinstance(content, BadLine):
                raise content
            return text_of(_parse_line(content) if isinstance(content, bytes) else content, key), number
        except BadLine:
            pass
    raise InputError(
        f"{path} has no document at {position}: it has changed since it was preprocessed; restore or preprocess it"
    )


def _row_at(source: Source, row: int, key: str) -> tuple[dict[str, Any] | BadLine, int] | None:
    for unit in parquet_units(whole_span(source), Fields(text_keys=(key,))):
        if unit.start <= row < unit.stop:
            return rows_of(unit.content.slice(row - unit.start, 1))[0], row
    return None


def _line_at(source: Source, position: int) -> tuple[bytes, int] | None:
    """The line that starts at a byte of the uncompressed text, and its number."""
    if source.compression is None:
        with open_regular(source.path) as stream:
            stream.seek(position)
            return stream.readline(), count_lines(source, position) + 1
    num_lines = 0
    for unit in compressed_units(whole_span(source), _NO_BOUND):
        if position < unit.stop:
            offset = position - unit.start
            line = unit.content[offset : unit.content.find(b"\n", offset) + 1 or None]
            return line, num_lines + unit.content.count(b"\n", 0, offset) + 1
        num_lines += unit.content.count(b"\n")
    return None
