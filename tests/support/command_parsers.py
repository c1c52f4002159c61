"""The parser of every program that the documentation shows: ours, and Megatron's with our flags beside its own."""

import argparse
import functools
from collections.abc import Sequence
from typing import NoReturn

from documented_commands import ANY_WORDS, is_literal

from megatron_miniplm.commands import MEGATRON_PROGRAMS, module_of
from megatron_miniplm.training import flags as training_flags

TRAINING_PROGRAMS = frozenset({"pretrain_gpt", "launch"})


class _Refused(Exception):
    """What a parser would print before it exits."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _Refused(message)


@functools.cache
def parser_of(program: str) -> argparse.ArgumentParser:
    """The real parser of `program`, in which nothing is required: pages may leave flags out."""
    # Ours come last and replace Megatron's of the same name, as in convert-checkpoint, which reads its own first.
    parser = _Parser(prog=program, allow_abbrev=False, conflict_handler="resolve")
    if program in MEGATRON_PROGRAMS | TRAINING_PROGRAMS:
        _add_megatron_arguments(parser)
    if program in TRAINING_PROGRAMS | {"inspect-batch"}:  # which takes the flags of a training run
        training_flags.add_arguments(parser)
    if program not in TRAINING_PROGRAMS:
        module_of(program).add_arguments(parser)
    for action in parser._actions:
        action.required = False
    for group in parser._mutually_exclusive_groups:
        group.required = False
    return parser


def complaints(program: str, words: Sequence[str]) -> list[str]:
    """What is wrong with the flags of a documented command: unknown, or given values that they do not take.

    Values are checked where all of a flag's are literal.
    """
    return [complaint for flag, values in _flags(words) if (complaint := _complaint(program, flag, values))]


def _add_megatron_arguments(parser: argparse.ArgumentParser) -> None:
    # Without `program.prepare`, which would change this process for the tests that follow.
    from megatron.training.arguments import add_megatron_arguments

    add_megatron_arguments(parser)


def _flags(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Every flag with the words that follow it up to the next one."""
    flags: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flags.append((word, []))
        elif flags:
            flags[-1][1].append(word)
    return flags


def _complaint(program: str, flag: str, values: Sequence[str]) -> str | None:
    name, equals, value = flag.partition("=")
    parser = parser_of(program)
    if name not in parser._option_string_actions:
        return f"{program} has no {name}"
    values = [value for value in values if value != ANY_WORDS]
    if not (values or equals) or not all(map(is_literal, [value, *values])):
        return None
    try:
        parser.parse_args([flag, *values])
    except _Refused as refused:
        return f"{program} {' '.join([flag, *values])}: {refused}"
    return None
