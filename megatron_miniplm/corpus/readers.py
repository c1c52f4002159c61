"""Documents of JSONL and Parquet files, unit by unit, each line checked before anything is encoded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from megatron_miniplm.corpus.sources import Source, Span, expand_inputs, whole_span
from megatron_miniplm.corpus.units import Unit, compressed_units, count_lines, lines_of, parquet_units, units_of
from megatron_miniplm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which values of a line are read.

    Attributes:
        text_keys: keys whose values are text.
        id_key, domain_key: keys of the document's id and domain, strings or integers; a dot leads into an object.
    """

    text_keys: tuple[str, ...]
    id_key: str | None = None
    domain_key: str | None = None


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


class _BadLine(Exception):
    """Why a line cannot be used: what was expected, what was found, and the remedy."""


class UnitReader:
    """Reads units; holds what depends on the fields alone."""

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._label_paths = [key.split(".") if key else None for key in (fields.id_key, fields.domain_key)]
        self._names = {key: f"field_{number}" for number, key in enumerate(self.columns)}
        types = [(name, str if key in fields.text_keys else Any) for key, name in self._names.items()]
        record = msgspec.defstruct("Record", types, rename={name: key for key, name in self._names.items()})
        self._decode = msgspec.json.Decoder(record).decode

    @property
    def columns(self) -> list[str]:
        """The top-level keys, or columns, that hold all fields."""
        labels = [path[0] for path in self._label_paths if path]
        return list(dict.fromkeys([*self._fields.text_keys, *labels]))

    def read(self, unit: Unit) -> Documents:
        """The documents of a unit; lines of white space only are no documents."""
        documents = Documents(texts={key: [] for key in self._fields.text_keys})
        documents.ids, documents.domains = ([] if path else None for path in self._label_paths)
        if unit.source.format == "parquet":
            self._read_rows(unit, documents)
        else:
            for position, lines in lines_of(unit):
                self._read_lines(lines, position, documents)
        return documents

    def _read_lines(self, data: bytes, position: int, documents: Documents) -> None:
        text_names = [(key, self._names[key]) for key in self._fields.text_keys]
        lines = data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        first_index, documents.num_lines = documents.num_lines, documents.num_lines + len(lines)
        for index, line in enumerate(lines, start=first_index):
            start, position = position, position + len(line) + 1
            if not line or line.isspace():
                continue
            try:
                try:
                    record = self._decode(line)
                    if not line.isascii():
                        line.decode("utf-8")
                    texts = [getattr(record, name) for _, name in text_names]
                    labels = [self._label(record, path) for path in self._label_paths]
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # judge it by Python's own parser
                    document = _parse_line(line)
                    texts = [_text_of(document, key) for key, _ in text_names]
                    labels = [_label_of(document, path) for path in self._label_paths]
            except _BadLine as error:
                documents.rejected.append(Rejected(index=index, position=start, reason=str(error)))
                continue
            _append(documents, start, texts, labels)

    def _label(self, record: Any, path: list[str] | None) -> str | None:
        return None if path is None else _label_of({path[0]: getattr(record, self._names[path[0]])}, path)

    def _read_rows(self, unit: Unit, documents: Documents) -> None:
        columns = {name: unit.content.column(name).to_pylist() for name in self.columns}
        documents.num_lines = unit.content.num_rows
        for index in range(unit.content.num_rows):
            row = {name: values[index] for name, values in columns.items()}
            try:
                texts = [_text_of(row, key) for key in self._fields.text_keys]
                labels = [_label_of(row, path) for path in self._label_paths]
            except _BadLine as error:
                documents.rejected.append(Rejected(index=index, position=unit.start + index, reason=str(error)))
                continue
            _append(documents, unit.start + index, texts, labels)


def read_texts(inputs: Sequence[str | Path], keys: Sequence[str]) -> Iterator[str]:
    """The texts of all inputs, unit by unit, in each key by key.

    Raises:
        InputError: an input cannot be read; at the first bad line.
    """
    reader = UnitReader(Fields(text_keys=tuple(keys)))
    for source in expand_inputs(inputs):
        span = whole_span(source)
        counter = LineCounter(span)
        for unit in units_of(span, reader.columns):
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
        raise _BadLine(
            f"expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start} of the line: "
            "convert the file to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        if b"\0" in line:
            raise _BadLine("expected one JSON object a line, found NUL bytes: copy or write the file again") from None
        raise _BadLine(f"expected one JSON object a line, but it is not JSON ({error}): mend it") from None
    if not isinstance(document, dict):
        raise _BadLine(f"expected a JSON object, found {_json_type(document)}: put the text under a key")
    return document


def _text_of(document: dict[str, Any], key: str) -> str:
    if key not in document:
        present = ", ".join(map(repr, sorted(document))) or "none"
        raise _BadLine(f"expected the key {key!r}, found {present}: name the key of the text in --json-keys")
    text = document[key]
    if not isinstance(text, str):
        raise _BadLine(f"expected a string under {key!r}, found {_json_type(text)}: mend or drop the line")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise _BadLine(
                f"expected Unicode text under {key!r}, found the lone surrogate "
                f"\\u{ord(text[error.start]):04x} at character {error.start}: remove it or write the pair"
            ) from None
    return text


def _label_of(document: Any, path: list[str] | None) -> str | None:
    """The id or domain of a document; None if none was asked for."""
    if path is None:
        return None
    for depth, name in enumerate(path):
        if not isinstance(document, dict) or name not in document:
            raise _BadLine(
                f"expected the key {'.'.join(path[: depth + 1])!r}: name the key in --id-key and --domain-key"
            )
        document = document[name]
    if isinstance(document, bool) or not isinstance(document, str | int):
        raise _BadLine(f"expected a string or an integer under {'.'.join(path)!r}, found {_json_type(document)}")
    label = str(document)
    if not label.isascii() and any(0xD800 <= ord(character) < 0xE000 for character in label):
        raise _BadLine(f"expected Unicode text under {'.'.join(path)!r}, found a lone surrogate: remove it")
    return label


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a {type(value).__name__}")


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
            return _text_of(_parse_line(content) if isinstance(content, bytes) else content, key), number
        except _BadLine:
            pass
    raise InputError(
        f"{path} has no document at {position}: it has changed since it was preprocessed; restore or preprocess it"
    )


def _row_at(source: Source, row: int, key: str) -> tuple[dict[str, Any], int] | None:
    for unit in parquet_units(whole_span(source), [key]):
        if unit.start <= row < unit.stop:
            return {key: unit.content.column(key)[row - unit.start].as_py()}, row
    return None


def _line_at(source: Source, position: int) -> tuple[bytes, int] | None:
    """The line that starts at a byte of the uncompressed text, and its number."""
    if source.compression is None:
        with open(source.path, "rb") as stream:
            stream.seek(position)
            return stream.readline(), count_lines(source, position) + 1
    num_lines = 0
    for unit in compressed_units(whole_span(source)):
        if position < unit.stop:
            offset = position - unit.start
            line = unit.content[offset : unit.content.find(b"\n", offset) + 1 or None]
            return line, num_lines + unit.content.count(b"\n", 0, offset) + 1
        num_lines += unit.content.count(b"\n")
    return None
