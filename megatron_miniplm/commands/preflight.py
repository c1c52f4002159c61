"""Parse the flags of all stages with the parsers of their programs, before anything is submitted.

slurm/submit_pipeline.sh runs `python -m megatron_miniplm.commands.preflight`, which reads commands from standard input,
each as its stage, the number of its words and the words, all ended by NUL. Exit code 0: all can be parsed; 2: not, and
one line for each such command says why.

Without Megatron on this machine, only our own flags of Megatron programs are checked. Of a script of the user's nobody
knows all flags, so there too only ours are.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from megatron_miniplm.commands import MEGATRON_PROGRAMS, module_of
from megatron_miniplm.errors import EXIT_BAD_INPUT, MiniPLMError, MissingPackageError, UnsupportedMegatronError
from megatron_miniplm.runtime.command_line import CommandParser, UsageError, did_you_mean
from megatron_miniplm.runtime.terminal import printable

#: What the names of our flags begin with in programs that take Megatron's flags.
_OUR_PREFIX = "--miniplm-"
_STUDENT = ("python", "-m", "megatron_miniplm.pretrain_gpt")


@dataclass(frozen=True, kw_only=True)
class StageCommand:
    """One command that a stage runs: `miniplm COMMAND FLAGS...` or `python PROGRAM FLAGS...`."""

    stage: str
    words: tuple[str, ...]


def main() -> int:
    """Report every command that cannot be parsed; returns the exit code."""
    # What Megatron prints when it is imported is no answer.
    with contextlib.redirect_stdout(sys.stderr):
        faults = list(find_faults(read_commands(sys.stdin.buffer.read())))
    for fault in faults:
        print(f"error: {printable(fault, one_line=True)}", file=sys.stderr)
    return EXIT_BAD_INPUT if faults else 0


def read_commands(text: bytes) -> list[StageCommand]:
    """Commands as submit_pipeline.sh writes them."""
    words = iter(text.decode("utf-8", "surrogateescape").split("\0")[:-1])
    return [StageCommand(stage=stage, words=tuple(next(words) for _ in range(int(next(words))))) for stage in words]


def find_faults(commands: Sequence[StageCommand]) -> Iterator[str]:
    """What is wrong with each command that cannot be parsed, in one line that names the stage."""
    for command in commands:
        try:
            _parse(command.words)
        except MiniPLMError as error:
            yield f"stage {command.stage}: {error}"
        except SystemExit:
            yield f"stage {command.stage}: {' '.join(command.words[:2])} is given --help or --version"


def _parse(words: Sequence[str]) -> None:
    """Raise `UsageError` unless the program of a command can parse its flags."""
    if words[0] == "miniplm":
        name, *flags = words[1:]
        module = module_of(name)
        if name in MEGATRON_PROGRAMS:
            _parse_with_megatron(f"miniplm {name}", module.add_arguments, flags)
            return
        parser = CommandParser(f"miniplm {name}")
        module.add_arguments(parser)
        parser.parse_args(flags)
        return
    from megatron_miniplm.training.flags import add_arguments

    if tuple(words[: len(_STUDENT)]) == _STUDENT:
        _parse_with_megatron("pretrain_gpt", add_arguments, words[len(_STUDENT) :])
    else:
        _parse_ours("training program", add_arguments, words[1:])


def _parse_with_megatron(program: str, add_arguments: Callable[..., Any], flags: Sequence[str]) -> None:
    megatrons = _megatron_parser()
    if megatrons is None:
        _parse_ours(program, add_arguments, flags)
        return
    parser = CommandParser(program, parents=[megatrons], allow_abbrev=False)
    add_arguments(parser)
    parser.parse_args(flags)


def _parse_ours(program: str, add_arguments: Callable[..., Any], flags: Sequence[str]) -> None:
    parser = CommandParser(program, allow_abbrev=False)
    add_arguments(parser)
    _, rest = parser.parse_known_args(flags)
    known = [flag for flag in parser._option_string_actions if flag.startswith(_OUR_PREFIX)]
    for flag in (word.split("=", 1)[0] for word in rest if word.startswith(_OUR_PREFIX)):
        raise UsageError(f"{program}: {flag} is unknown{did_you_mean(flag, known)}")


@cache
def _megatron_parser() -> argparse.ArgumentParser | None:
    """Megatron's own parser, built once; None where this machine has no Megatron that our programs run with."""
    from megatron_miniplm.mcore import megatron_output, program

    megatron_output.hide_unless_verbose()
    try:
        program.prepare()
    except (UnsupportedMegatronError, MissingPackageError, ImportError) as error:
        print(f"note: Megatron's own flags are not checked here: {error}", file=sys.stderr)
        return None
    from megatron.training.arguments import add_megatron_arguments

    return add_megatron_arguments(argparse.ArgumentParser(add_help=False, allow_abbrev=False))


if __name__ == "__main__":
    sys.exit(main())
