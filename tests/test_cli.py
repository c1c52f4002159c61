"""What `run_tool` makes of signals that a command could not foresee."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import pytest

from megatron_miniplm import cli
from megatron_miniplm.errors import STOP_SIGNALS

NAME = "command-of-this-test"


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(monkeypatch: pytest.MonkeyPatch, body: Callable[[], None]) -> int:
    module = ModuleType("megatron_miniplm.commands.command_of_this_test", "Nothing.")
    vars(module).update(add_arguments=lambda parser: None, run=lambda arguments: body())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, NAME, ("command_of_this_test", ""))
    return cli.run_tool(NAME, [])


def wrap(error: type[BaseException]) -> Callable[[], None]:
    def body() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            signal.sigtimedwait([], 1)  # the handler runs here at the latest
        except BaseException as found:
            raise error("a library's own") from found

    return body


class CheckpointException(BaseException):
    """Like torch's, no `Exception`."""


@pytest.mark.parametrize("error", [RuntimeError, CheckpointException])
def test_an_interrupt_that_a_library_wraps_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    assert run(monkeypatch, wrap(error)) == 75
    assert capsys.readouterr().err == "interrupted; run the same command again to continue\n"


def test_a_bug_without_a_signal_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(monkeypatch, body)


def test_usage_errors_end_as_argparse_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def body() -> None:
        argparse.ArgumentParser().error("wrong flag")

    with pytest.raises(SystemExit) as found:
        run(monkeypatch, body)
    assert found.value.code == 2
