"""Command lines as users meet them: errors of one line that suggest what was meant, and help that fits a screen.

Megatron's parser has some 700 flags. Its programs show ours by `--help`, and all of them by `--help-megatron`.
"""

import argparse
import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from megatron_miniplm import __version__
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.runtime.launchers import leave_exit_code, repeat_after_torchrun
from megatron_miniplm.runtime.terminal import printable

HELP_FLAGS = ("-h", "--help")
HELP_MEGATRON = "--help-megatron"
VERSION_FLAG = "--version"
VERSION = f"megatron-miniplm {__version__}"
#: What argparse calls flags that it does not know.
_UNKNOWN = "unrecognized arguments: "
#: What argparse says of required flags, before it looks for unknown ones.
_REQUIRED = re.compile(r"(?:the following arguments are required:|one of the arguments .* is required)")
_MEGATRON_NOTE = f"Megatron's own flags are accepted too; {HELP_MEGATRON} lists all of them."

#: A rank with nothing to say leaves so much later: launchers end all ranks once one has left, the one that prints too.
LAST_WORD_SECONDS = 2.0
#: Flags that stood beside Megatron's under our prefix; both names stay.
_ALIASES = {
    f"--miniplm-{name}": f"--{name}"
    for name in (
        "block-sequences",
        "corpus",
        "float32",
        "offline",
        "results",
        "scores",
        "tasks",
        "window-overlap",
    )
}
#: Names of flags in the release before this one.
FORMER_SPELLINGS = {
    "--from-scores": "--rank-by",
    "--miniplm-any-tokenizer": "--allow-tokenizer-mismatch",
    "--processes": "--workers",
}

AddArguments = Callable[[argparse.ArgumentParser], Any]


class UsageError(InputError):
    """A command line that cannot be parsed."""


class MissingFlagError(UsageError):
    """A flag that this use of a command needs, and that argparse does not know to be required."""

    def __init__(self, flag: str, reason: str) -> None:
        super().__init__(f"{flag} is missing: {reason}")
        self.flag = flag

    def with_suggestion(self, words: Iterable[str]) -> "UsageError":
        """The same error with the words of the command line that may be meant as the flag."""
        return UsageError(f"{self}{''.join(_mistyped([self.flag], _flags_among(words)))}")


class PlainHelp(argparse.RawDescriptionHelpFormatter):
    """Prints help texts that hold a bare `%` as they are, where argparse would raise; Megatron has such texts."""

    def _expand_help(self, action: argparse.Action) -> str:
        try:
            return super()._expand_help(action)
        except (ValueError, TypeError, KeyError):
            return action.help or ""


def accept_other_spellings(parser: argparse.ArgumentParser) -> None:
    """Let a parser take the aliases and former spellings of its flags; its help does not show them."""
    known = parser._option_string_actions
    for spelling, flag in {**_ALIASES, **FORMER_SPELLINGS}.items():
        if flag in known:
            known.setdefault(spelling, known[flag])


def canonical_flag(flag: str) -> str:
    """A flag by its name, whichever spelling was given."""
    return _ALIASES.get(flag) or FORMER_SPELLINGS.get(flag, flag)


def announce_former_spellings(words: Iterable[str], *, visible: bool = True) -> None:
    """Print the new name of every flag that is given by a former one.

    Args:
        visible: False on ranks that have nothing to say.
    """
    for flag in dict.fromkeys(_flags_among(words)):
        if visible and (name := FORMER_SPELLINGS.get(flag)):
            print(f"{flag} is now {name}; the old name works in this release only", file=sys.stderr)


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises `UsageError` instead of printing a page of usage and leaving."""

    def __init__(self, program: str | None = None, description: str | None = None, **settings: Any) -> None:
        super().__init__(prog=program, description=description, formatter_class=PlainHelp, **settings)
        self._words: Sequence[str] = ()
        if self.add_help:
            add_version(self)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; the words are kept for `error`."""
        self._words = list(sys.argv[1:] if args is None else args)
        accept_other_spellings(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError`, with a suggestion for each unknown flag."""
        raise UsageError(usage_message(self, message, self._words))


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument(VERSION_FLAG, action="version", version=VERSION, help="print the version and exit")


def our_flags_only(command: str) -> CommandParser:
    """The parser by which a Megatron program looks at its own flags before Megatron's parser is there."""
    return CommandParser(f"miniplm {command}", add_help=False, allow_abbrev=False)


def usage_message(parser: argparse.ArgumentParser, message: str, words: Sequence[str] = ()) -> str:
    """What argparse says of a command line, in one line, with the flags that may have been meant.

    Args:
        words: the command line. A required flag that is mistyped is reported as missing, and the typo is found here.
    """
    flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
    if message.startswith(_UNKNOWN):
        unknown = message.removeprefix(_UNKNOWN).split()
        named = [word.split("=", 1)[0] for word in unknown if word.startswith("-")] or unknown
        message = "; ".join(f"{word} is unknown{did_you_mean(word, flags)}" for word in named)
    elif _REQUIRED.match(message):
        unknown = [word for word in _flags_among(words) if not _takes(parser, word)]
        message += "".join(_mistyped(_required_flags(parser), unknown))
    return f"{parser.prog}: {message} ({HELP_FLAGS[1]} lists the flags)"


def _required_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag that must be given, alone or as one of a group."""
    groups = [group._group_actions for group in parser._mutually_exclusive_groups if group.required]
    actions = [action for action in parser._actions if action.required or any(action in group for group in groups)]
    return [flag for action in actions for flag in action.option_strings if flag.startswith("--")]


def _flags_among(words: Iterable[str]) -> list[str]:
    """The long flags of a command line, without values."""
    flags_only = takewhile(lambda word: word != "--", words)
    return [word.split("=", 1)[0] for word in flags_only if word.startswith("--")]


def _takes(parser: argparse.ArgumentParser, flag: str) -> bool:
    """Whether the parser knows the flag, or an abbreviation that it accepts."""
    known = parser._option_string_actions
    return flag in known or (parser.allow_abbrev and any(name.startswith(flag) for name in known))


def _mistyped(required: Sequence[str], unknown: Sequence[str]) -> Iterator[str]:
    """A clause for each unknown flag that resembles a required one; other unknown flags may be Megatron's."""
    for word in unknown:
        if word not in required and (suggestion := did_you_mean(word, required, cutoff=0.8)):
            yield f"; {word} is unknown{suggestion}"


def did_you_mean(word: str, known: Collection[str], *, cutoff: float = 0.7) -> str:
    """`: did you mean X?` with the most similar known words, or nothing where none is similar."""
    found = difflib.get_close_matches(word, known, n=2, cutoff=cutoff)
    return f": did you mean {' or '.join(found)}?" if found else ""


def print_version(words: Iterable[str], *, visible: bool = True) -> bool:
    """Print the version if a command line asks for it; whether it does. Needs no parser, and no Megatron.

    Args:
        visible: False on ranks that have nothing to say.
    """
    if VERSION_FLAG not in words:
        return False
    if visible:
        print(VERSION)
    return True


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
    add_version(parser)
    parse_known_args = parser.parse_known_args
    parsed: list[str] = []

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
        fail(UsageError(usage_message(parser, message, parsed)))

    def remember(args: Any = None, namespace: Any = None) -> Any:
        parsed[:] = sys.argv[1:] if args is None else args
        return parse_known_args(args, namespace)

    vars(parser).update(format_help=format_help, error=error, parse_known_args=remember)


class _WholeHelp(argparse.Action):
    """Prints the help of all flags and leaves, as argparse's own `--help` does."""

    def __init__(self, *, whole_help: Callable[[], str], **settings: Any) -> None:
        super().__init__(nargs=0, default=argparse.SUPPRESS, help="list Megatron's flags as well", **settings)
        self._whole_help = whole_help

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(self._whole_help(), end="")
        parser.exit()


def report(error: MiniPLMError) -> int:
    """Print the one line that a user's error deserves, with the rank unless it is 0; returns its exit code."""
    if error.reported_elsewhere:
        time.sleep(LAST_WORD_SECONDS)
    else:
        rank = os.environ.get("RANK", "0")
        place = "" if rank == "0" else f"[rank {rank}] "
        line = f"{place}error: {printable(str(error), one_line=True)}"
        print(line, file=sys.stderr, flush=True)
        leave_exit_code(error.exit_code, line)
        repeat_after_torchrun(line)
    return error.exit_code
