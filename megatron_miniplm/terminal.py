r"""Text from data, made safe to print: what would act on a terminal is shown as an escape such as `\x1b` instead.

Texts, names and paths come from anywhere. Printed as they are, they may set a window's title, hide or forge lines, or
type for the user (CWE-150); a lone surrogate makes `print` itself fail.
"""

import logging
import re

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


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")
