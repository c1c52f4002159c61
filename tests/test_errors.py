"""Messages for users."""

import pytest

from megatron_miniplm.errors import InputError, MiniPLMError, one_line


@pytest.mark.parametrize("kind", [InputError, MiniPLMError])
def test_a_message_is_one_line_whatever_names_are_in_it(kind: type[MiniPLMError]) -> None:
    text = str(kind("data/a\nb\r\u2028c.idx is missing: copy it"))
    assert text == r"data/a\nb\r\u2028c.idx is missing: copy it"
    assert len(text.splitlines()) == 1


def test_what_a_library_says_is_cut_and_in_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 1000))) == 300
