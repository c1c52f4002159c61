"""Which values of a document are read, and what makes a value unusable."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_MAX_KEYS_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which values of a document are read.

    A key names a value at the top. If there is none and the key has dots, they lead into objects: `meta.source`.

    Attributes:
        text_keys: keys whose values are text.
        id_key, domain_key: keys of the document's id and domain, strings or integers.
    """

    text_keys: tuple[str, ...]
    id_key: str | None = None
    domain_key: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, each once."""
        labels = [key for key in (self.id_key, self.domain_key) if key]
        return tuple(dict.fromkeys([*self.text_keys, *labels]))


class BadLine(Exception):
    """Why a line or row cannot be used: what was expected, what was found, and the remedy."""


def heads_of(key: str) -> tuple[str, ...]:
    """The names at the top of a document under which a key may be found: itself, and what stands before its dot."""
    return (key, key.partition(".")[0]) if "." in key else (key,)


def text_of(document: dict[str, Any], key: str) -> str:
    """The text under a key; bytes, as Parquet may hold them, are read as UTF-8.

    Raises:
        BadLine: there is none, or it is not Unicode text.
    """
    try:
        text = _value_at(document, key)
    except KeyError as error:
        missing, found = error.args
        raise BadLine(f"expected the key {missing!r}, found {found}: name the key of the text in --json-keys") from None
    if isinstance(text, bytes):
        text = _decoded(text, key)
    if not isinstance(text, str):
        raise BadLine(f"expected a string under {key!r}, found {json_type(text)}: fix or remove the line")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise BadLine(
                f"expected Unicode text under {key!r}, found the lone surrogate "
                f"\\u{ord(text[error.start]):04x} at character {error.start}: remove it or write the pair"
            ) from None
    return text


def label_of(document: dict[str, Any], key: str | None) -> str | None:
    """The id or domain of a document; None if none was asked for.

    Raises:
        BadLine: there is none, or it is neither a string nor an integer.
    """
    if key is None:
        return None
    try:
        value = _value_at(document, key)
    except KeyError as error:
        raise BadLine(f"expected the key {error.args[0]!r}: name the key in --id-key and --domain-key") from None
    if isinstance(value, bytes):
        value = _decoded(value, key)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadLine(f"expected a string or an integer under {key!r}, found {json_type(value)}")
    label = str(value)
    if not label.isascii() and any(0xD800 <= ord(character) < 0xE000 for character in label):
        raise BadLine(f"expected Unicode text under {key!r}, found a lone surrogate: remove it")
    return label


def json_type(value: Any) -> str:
    """What a value is, with its article."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), f"a value of type {type(value).__name__}")


def names_shown(names: Iterable[str]) -> str:
    """Some of the names, quoted, for an error; `none` if there are none."""
    shown = [repr(name if len(name) <= 80 else f"{name[:80]}...") for name in sorted(names)]
    rest = f" and {len(shown) - _MAX_KEYS_SHOWN} more" if len(shown) > _MAX_KEYS_SHOWN else ""
    return ", ".join(shown[:_MAX_KEYS_SHOWN]) + rest or "none"


def _value_at(document: dict[str, Any], key: str) -> Any:
    """The value under a key.

    Raises:
        KeyError: its arguments are the part of the key that is missing, and what is there instead.
    """
    if key in document:
        return document[key]
    value: Any = document
    names = key.split(".")
    for depth, name in enumerate(names):
        if not isinstance(value, dict) or name not in value:
            found = names_shown(value) if isinstance(value, dict) else json_type(value)
            place = f" under {'.'.join(names[:depth])!r}" if depth else ""
            raise KeyError(".".join(names[: depth + 1]), found + place)
        value = value[name]
    return value


def _decoded(value: bytes, key: str) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadLine(
            f"expected UTF-8 under {key!r}, found byte 0x{value[error.start]:02x} at byte {error.start}: "
            "convert the file to UTF-8"
        ) from None
