"""Documents of JSONL files, in batches of a few MiB, each line checked before anything is encoded."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from megatron_miniplm.errors import InputError

BATCH_BYTES = 4 << 20  # of JSONL; bounds the memory of everything downstream


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Consecutive documents of one file.

    Attributes:
        texts: for each key, the text of every document, in file order.
        text_bytes: for each key, the size of its texts in UTF-8.
        input_bytes: bytes of the file that the batch came from, for progress.
    """

    texts: dict[str, list[str]]
    text_bytes: dict[str, int]
    input_bytes: int


def check_inputs(paths: Sequence[Path]) -> None:
    """Refuse what cannot be read, before minutes of work are spent on the files in front of it."""
    for path in paths:
        if not path.is_file():
            found = "is a directory" if path.is_dir() else "does not exist"
            raise InputError(f"{path} {found}: give one or more JSONL files to --input")


def read_batches(paths: Sequence[Path], keys: Sequence[str], batch_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
    """The documents of all files in order; lines of white space only are no documents.

    Raises:
        InputError: a line is not UTF-8, not a JSON object, lacks a key, or has a value that is not Unicode text.
    """
    for path in paths:
        with open(path, "rb") as stream:
            yield from _read_file(path, stream, keys, batch_bytes)


def _read_file(path: Path, stream: IO[bytes], keys: Sequence[str], batch_bytes: int) -> Iterator[Batch]:
    texts: dict[str, list[str]] = {key: [] for key in keys}
    text_bytes = dict.fromkeys(keys, 0)
    input_bytes = 0
    for line_number, line in enumerate(stream, start=1):
        input_bytes += len(line)
        if line.isspace():
            continue
        place = f"{path}, line {line_number}"
        document = _parse_line(line, place)
        for key in keys:
            text, size_bytes = _text_of(document, key, place)
            texts[key].append(text)
            text_bytes[key] += size_bytes
        if input_bytes >= batch_bytes:
            yield Batch(texts=texts, text_bytes=text_bytes, input_bytes=input_bytes)
            texts = {key: [] for key in keys}
            text_bytes = dict.fromkeys(keys, 0)
            input_bytes = 0
    if input_bytes:
        yield Batch(texts=texts, text_bytes=text_bytes, input_bytes=input_bytes)


def _parse_line(line: bytes, place: str) -> dict[str, Any]:
    try:
        document = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{place}: expected UTF-8, found byte 0x{line[error.start]:02x} at byte {error.start} of the line: "
            "convert the file to UTF-8"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: expected one JSON object a line, but it is not JSON ({error}): mend it") from None
    if not isinstance(document, dict):
        raise InputError(f"{place}: expected a JSON object, found {_json_type(document)}: put the text under a key")
    return document


def _text_of(document: dict[str, Any], key: str, place: str) -> tuple[str, int]:
    """The text under a key and its size in UTF-8 bytes."""
    if key not in document:
        present = ", ".join(map(repr, sorted(document))) or "none"
        raise InputError(f"{place}: expected the key {key!r}, found {present}: name the key of the text in --json-keys")
    text = document[key]
    if not isinstance(text, str):
        raise InputError(f"{place}: expected a string under {key!r}, found {_json_type(text)}: mend or drop the line")
    try:
        return text, len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: expected Unicode text under {key!r}, found the lone surrogate "
            f"\\u{ord(text[error.start]):04x} at character {error.start}: remove it or write the pair"
        ) from None


def _json_type(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names[type(value)]
