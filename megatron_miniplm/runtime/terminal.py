r"""Text from data, made safe to print: what would act on a terminal is shown as an escape such as `\x1b` instead.

Texts, names and paths come from anywhere. Printed as they are, they may set a window's title, hide or forge lines, or
type for the user (CWE-150); a lone surrogate makes `print` itself fail.
"""

import json
import logging
import re
from typing import Any, TextIO

#: C0 but for tab and line feed, DEL and C1; overrides of the writing direction; lone surrogates.
_ACTS_ON_TERMINALS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
#: These too, and whatever else ends a line or moves the cursor.
_ACTS_IN_A_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, *, one_line: bool = False) -> str:
    r"""`text` with its control characters shown as `\x1b`, `\r` or `\u202e`; all other characters stay.

    Args:
        one_line: escape tabs and line breaks too. Without it they are kept.
    """
    return (_ACTS_IN_A_LINE if one_line else _ACTS_ON_TERMINALS).sub(_escaped, text)


class PrintableFormatter(logging.Formatter):
    """Formats log records as `logging.Formatter` does, safe to print."""

    def format(self, record: logging.LogRecord) -> str:
        """The whole record: its message, and a traceback where it has one."""
        return printable(super().format(record))


class PrintableStream:
    """Writes to another text stream, safe to print; everything else is the other stream's."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def printable_json(value: Any) -> str:
    r"""JSON for people and scripts: Unicode as it is, what would act on a terminal as `\u009b`."""
    return _ACTS_ON_TERMINALS.sub(_escaped_in_json, json.dumps(value, indent=2, ensure_ascii=False))


def _escaped_in_json(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
