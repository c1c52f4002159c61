"""The `miniplm` command: its own help and errors, and what `run_tool` makes of what a command prints and raises."""

import argparse
import os
import runpy
import signal
import sys
from collections.abc import Callable
from types import ModuleType

import pytest

from megatron_miniplm import __version__, cli
from megatron_miniplm.errors import InputError

NAME = "command-of-this-test"


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


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_a_command_all_commands_are_listed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = cli.main(arguments)
    except SystemExit as left:
        code = left.code
    assert code == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_the_module_is_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["miniplm", "--version"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("megatron_miniplm", run_name="__main__")
    assert left.value.code == 0
    assert capsys.readouterr().out == f"megatron-miniplm {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["score-corpsu"], "did you mean score-corpus?"),
        (["frobnicate"], "miniplm has no command frobnicate (--help"),
        (["--versoin"], "did you mean --version?"),
        (["status", "run", "--jsno"], "--jsno is unknown: did you mean --json?"),
        (["generate-corpus", "--promt-tokens", "3"], "--promt-tokens is unknown: did you mean --prompt-tokens?"),
        (["difference-sampling", "--ouptut=x"], "--ouptut is unknown: did you mean --output?"),
        (["scores", "--versoin", "x"], "did you mean --version or --verify?"),
        (
            ["inspect-batch", "--iteration", "3", "--global-bacth-size", "8"],
            "--global-bacth-size is unknown: did you mean --global-batch-size?",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line_with_what_was_meant(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert meant in line


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_says_the_version_and_does_nothing_else(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "--seq-length", "8", "--version"]) == 0
    assert capsys.readouterr() == (f"megatron-miniplm {__version__}\n", "")


def test_only_the_first_rank_says_the_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert cli.main(["score-corpus", "--version"]) == 0
    assert capsys.readouterr() == ("", "")


def test_what_a_command_prints_and_raises_cannot_act_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        print("a text \x1b]0;title\x07")
        raise InputError("a\x1b[2J.jsonl\nerror: forged")

    assert run(monkeypatch, body) == 2
    shown = capsys.readouterr()
    assert shown.out == "a text \\x1b]0;title\\x07\n"
    assert shown.err == "error: a\\x1b[2J.jsonl\\nerror: forged\n"
    print("\x1b", end="")
    assert capsys.readouterr().out == "\x1b", "only while a command runs"
