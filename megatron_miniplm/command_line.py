"""Command lines as users meet them: errors of one line that suggest what was meant, and help that fits a screen.

Megatron's parser has some 700 flags. Its programs show ours by `--help`, and all of them by `--help-megatron`.
"""

import argparse
import difflib
from collections.abc import Callable, Collection, Iterable
from typing import Any, NoReturn

from megatron_miniplm.errors import InputError

HELP_FLAGS = ("-h", "--help")
HELP_MEGATRON = "--help-megatron"
#: What argparse calls flags that it does not know.
_UNKNOWN = "unrecognized arguments: "
_MEGATRON_NOTE = f"Megatron's own flags are accepted too; {HELP_MEGATRON} lists all of them."

AddArguments = Callable[[argparse.ArgumentParser], Any]


class UsageError(InputError):
    """A command line that cannot be parsed."""


class PlainHelp(argparse.RawDescriptionHelpFormatter):
    """Prints help texts that hold a bare `%` as they are, where argparse would raise; Megatron has such texts."""

    def _expand_help(self, action: argparse.Action) -> str:
        try:
            return super()._expand_help(action)
        except (ValueError, TypeError, KeyError):
            return action.help or ""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of printing a page of usage and leaving."""

    def __init__(self, program: str | None = None, description: str | None = None, **settings: Any) -> None:
        super().__init__(prog=program, description=description, formatter_class=PlainHelp, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`, with a suggestion for each unknown flag."""
        raise UsageError(usage_message(self, message))


def our_flags_only(command: str) -> CommandParser:
    """The parser by which a Megatron program looks at its own flags before Megatron's parser is there."""
    return CommandParser(f"miniplm {command}", add_help=False, allow_abbrev=False)


def usage_message(parser: argparse.ArgumentParser, message: str) -> str:
    """What argparse says of a command line, in one line, with the flags that may have been meant."""
    flags = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    if message.startswith(_UNKNOWN):
        unknown = message.removeprefix(_UNKNOWN).split()
        named = [word.split("=", 1)[0] for word in unknown if word.startswith("-")] or unknown
        message = "; ".join(f"{word} is unknown{did_you_mean(word, flags)}" for word in named)
    return f"{parser.prog}: {message} ({HELP_FLAGS[1]} lists the flags)"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """`: did you mean X?` with the most similar known words, or nothing where none is similar."""
    found = difflib.get_close_matches(word, known, n=2, cutoff=0.7)
    return f": did you mean {' or '.join(found)}?" if found else ""


def wants_help(arguments: Iterable[str]) -> bool:
    """Whether a command line asks for any kind of help."""
    return not {*HELP_FLAGS, HELP_MEGATRON}.isdisjoint(arguments)


def print_help(
    program: str | None,
    description: str | None,
    add_arguments: Iterable[AddArguments],
    usage: str = "%(prog)s <flags>",
) -> None:
    """Print the help of a Megatron program without Megatron's own flags; needs no import of Megatron."""
    parser = CommandParser(program, description, usage=usage, epilog=_MEGATRON_NOTE)
    for add in add_arguments:
        add(parser)
    parser.print_help()


def shorten(parser: argparse.ArgumentParser, fail: Callable[[UsageError], NoReturn]) -> None:
    """Make Megatron's parser show and report what `CommandParser` would; call it before other flags are added.

    Flags that the parser has so far are Megatron's: `--help` leaves them out, `--help-megatron` shows them. Again is
    harmless.

    Args:
        fail: raises the error, or reports it and leaves.
    """
    if HELP_MEGATRON in parser._option_string_actions:
        return
    megatrons = list(parser._action_groups)
    whole_help = parser.format_help
    parser.formatter_class = PlainHelp
    parser.usage = "%(prog)s <flags>"
    parser.add_argument(HELP_MEGATRON, action=_WholeHelp, whole_help=whole_help)

    def format_help() -> str:
        formatter = parser._get_formatter()
        formatter.add_usage(parser.usage, parser._actions, parser._mutually_exclusive_groups)
        for group in parser._action_groups:
            if group not in megatrons:
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(group._group_actions)
                formatter.end_section()
        formatter.add_text(_MEGATRON_NOTE)
        return formatter.format_help()

    def error(message: str) -> NoReturn:
        fail(UsageError(usage_message(parser, message)))

    vars(parser).update(format_help=format_help, error=error)


class _WholeHelp(argparse.Action):
    """Prints the help of all flags and leaves, as argparse's own `--help` does."""

    def __init__(self, *, whole_help: Callable[[], str], **settings: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, help="list Megatron's flags as well", **settings)
        self._whole_help = whole_help

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(self._whole_help(), end="")
        parser.exit()
