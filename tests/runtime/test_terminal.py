"""What is printed of data: every control character visible, everything else untouched."""

import io
import json
import logging
import unicodedata
from pathlib import Path

import pytest

from megatron_miniplm.runtime.terminal import PrintableFormatter, PrintableStream, printable, printable_json


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


def test_json_stays_json_and_says_the_same() -> None:
    value = {"text\x9b": "漢 \x1b]0;title\x07 \u202e \n", "list": [1, None]}
    text = printable_json(value)
    assert json.loads(text) == value
    assert printable(text) == text
    assert "漢" in text


def test_a_stream_escapes_what_is_written_and_passes_the_rest_on(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        stream = PrintableStream(file)
        print("a\x1b[1m", "b", sep="\t", file=stream, flush=True)
        assert stream.encoding == "utf-8"
        assert stream.fileno() == file.fileno()
        assert not stream.isatty()
        assert (tmp_path / "log").read_text() == "a\\x1b[1m\tb\n"
    assert PrintableStream(io.StringIO()).write("\x07x") == 2
