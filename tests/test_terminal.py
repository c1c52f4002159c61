"""What is printed of data: every control character visible, everything else untouched."""

import logging
import unicodedata

import pytest

from megatron_miniplm.terminal import PrintableFormatter, printable


def test_a_terminal_sequence_becomes_readable_text() -> None:
    assert printable("a \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J") == r"a \x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J"


def test_no_control_character_of_unicode_is_left_but_tabs_and_line_feeds() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = [character for character in printable(everything) if unicodedata.category(character) in ("Cc", "Cs")]
    assert left == ["\t", "\n"]
    assert len(printable(everything, one_line=True).splitlines()) == 1


def test_all_other_characters_stay() -> None:
    text = "naïve 漢字 🙂\u200d🎓 C:\\x1b\\n شكرا\tend\n"
    assert printable(text) == text


def test_in_one_line_tabs_and_line_breaks_are_escaped() -> None:
    assert printable("a\nb\tc\r\u2028d", one_line=True) == r"a\nb\tc\r\u2028d"


def test_overrides_of_the_writing_direction_are_shown() -> None:
    assert printable("access\u202e\u2066 admin") == r"access\u202e\u2066 admin"


def test_names_that_are_not_utf_8_can_be_encoded() -> None:
    name = b"caf\xe9.jsonl".decode("utf-8", "surrogateescape")
    assert printable(name).encode() == rb"caf\udce9.jsonl"


def test_log_records_are_escaped_with_their_arguments_and_tracebacks(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test_terminal")
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        logger.exception("read %s", "a\x1b[1m.jsonl")
    text = PrintableFormatter("%(message)s").format(caplog.records[0])
    assert text.startswith("read a\\x1b[1m.jsonl\n")
    assert text.endswith("ValueError: \\x1b[2J")
