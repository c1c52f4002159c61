"""Completion scripts, in the shells that read them."""

import shutil
import subprocess
from collections.abc import Callable

import pytest

from megatron_miniplm.cli import main
from megatron_miniplm.commands import COMMANDS
from megatron_miniplm.commands.completion import Command, Flag, bash, commands, fish, zsh

KNOWN = [
    Command(
        name="select",
        help="keep some: the user's 'best'",
        flags=(
            Flag(name="--sampling", help="it's how", takes_value=True, choices=("top", "gumbel")),
            Flag(name="--scores", help="where: a directory", takes_value=True, choices=()),
            Flag(name="--json", help="print JSON", takes_value=False, choices=()),
        ),
        words=(),
    ),
    Command(name="shell", help="choose one", flags=(), words=("bash", "zsh")),
]


@pytest.fixture(scope="module")
def bash_script() -> str:
    return bash(KNOWN)


def in_bash(script: str, *words: str) -> list[str]:
    """What bash offers for the last word."""
    body = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _miniplm; printf "%s\\n" "${{COMPREPLY[@]}}"'
    run = subprocess.run(["bash", "--norc", "-c", body, "bash", *words], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    return run.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["miniplm", "s"], ["select", "shell"]),
        (["miniplm", "--v"], ["--version"]),
        (["miniplm", "select", "--s"], ["--sampling", "--scores"]),
        (["miniplm", "select", "--sampling", ""], ["top", "gumbel"]),
        (["miniplm", "select", "--sampling", "=", "g"], ["gumbel"]),
        (["miniplm", "select", "--sampling", "="], ["top", "gumbel"]),
        (["miniplm", "select", "--scores", "x"], []),  # file names, by `complete -o default`
        (["miniplm", "select", "--json", "--sc"], ["--scores"]),
        (["miniplm", "select", "x"], []),
        (["miniplm", "shell", "b"], ["bash"]),
        (["miniplm", "nonsense", "--s"], []),
    ],
)
def test_bash_offers_commands_flags_and_choices(bash_script: str, words: list[str], offered: list[str]) -> None:
    assert in_bash(bash_script, *words) == offered


def test_bash_completes_file_names_where_nothing_else_is_known(bash_script: str) -> None:
    shown = subprocess.run(
        ["bash", "--norc", "-c", bash_script + "complete -p miniplm"], capture_output=True, text=True
    )
    assert shown.stdout == "complete -o default -F _miniplm miniplm\n"


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("miniplm se", ["select\tkeep some: the user's 'best'"]),
        ("miniplm select --sa", ["--sampling\tit's how"]),
        ("miniplm select --sampling g", ["gumbel\tit's how"]),
    ],
)
def test_fish_offers_the_same_with_help(line: str, offered: list[str]) -> None:
    body = fish(KNOWN) + 'complete -C "$argv[1]"'
    run = subprocess.run(["fish", "--no-config", "-c", body, line], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == offered


@pytest.mark.parametrize(("shell", "script"), [("bash", bash), ("zsh", zsh), ("fish", fish)])
def test_scripts_of_the_real_commands_are_well_formed(shell: str, script: Callable[[list[Command]], str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script(commands()), text=True, check=True)


def test_every_command_and_its_flags_are_known() -> None:
    known = {command.name: {flag.name: flag for flag in command.flags} for command in commands()}
    assert list(known) == list(COMMANDS)
    assert known["difference-sampling"]["--sampling"].choices == ("top", "gumbel")
    assert known["scores"]["--json"].takes_value is False
    assert {"--scores", "--version", "--help"} <= set(known["score-corpus"])
    assert "--miniplm-selection" in known["inspect-batch"], "the flags of the run"
    assert all("\n" not in flag.help for flags in known.values() for flag in flags.values())


def test_the_command_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == bash(commands())
