"""What Megatron prints is hidden where it does not matter, and shown where something unexpected happens."""

import logging
from collections.abc import Iterator

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import megatron_output
from megatron_miniplm.mcore.megatron_output import VERBOSE_VARIABLE, hidden, hide_unless_verbose, hint


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ["megatron", *megatron_output._ALWAYS_WARNING]
    levels = {name: logging.getLogger(name).level for name in names}
    monkeypatch.setattr(megatron_output, "_is_hidden", False)
    monkeypatch.delenv(VERBOSE_VARIABLE, raising=False)
    yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def print_and_raise(error: BaseException | None) -> None:
    with hidden():
        print("setting global batch size to 16")
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("error", "is_shown"),
    [(None, False), (InputError("one line"), False), (ValueError("a bug"), True), (SystemExit(1), True)],
)
def test_it_is_shown_after_all_where_nobody_expected_the_end(
    capsys: pytest.CaptureFixture[str], error: BaseException | None, is_shown: bool
) -> None:
    hide_unless_verbose()
    if error is None:
        print_and_raise(None)
    else:
        with pytest.raises(type(error)):
            print_and_raise(error)
    assert capsys.readouterr().out == ("setting global batch size to 16\n" if is_shown else "")


@pytest.mark.parametrize(("value", "is_shown"), [(None, False), ("0", False), ("1", True)])
def test_one_variable_brings_it_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str | None, is_shown: bool
) -> None:
    if value is not None:
        monkeypatch.setenv(VERBOSE_VARIABLE, value)
    hide_unless_verbose()
    print_and_raise(None)
    assert bool(capsys.readouterr().out) == is_shown
    assert (VERBOSE_VARIABLE in hint()) == (not is_shown)


def test_programs_that_do_not_ask_hide_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    """Such as training."""
    print_and_raise(None)
    assert capsys.readouterr().out
    assert hint() == ""
