"""Megatron's parser as users of our programs see it, on a parser that is built the same way."""

import argparse
from pathlib import Path
from typing import NoReturn

import pytest

from megatron_miniplm.commands import MEGATRON_PROGRAMS, flags_of
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import (
    HELP_MEGATRON,
    CommandParser,
    MissingFlagError,
    UsageError,
    accept_other_spellings,
    announce_former_spellings,
    did_you_mean,
    print_help,
    shorten,
)
from megatron_miniplm.training.flags import add_arguments as add_training_flags


def fail(error: UsageError) -> NoReturn:
    raise error


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    """Megatron's flags, one with a help text that argparse cannot format, then ours."""
    parser = argparse.ArgumentParser("program", allow_abbrev=False)
    group = parser.add_argument_group("training")
    group.add_argument("--seq-length", type=int, help="100 % of a row")
    group.add_argument("--weight-decay", type=float)
    shorten(parser, fail)
    parser.add_argument_group("miniplm scoring").add_argument("--scores", help="where the scores go")
    return parser


def test_help_shows_our_flags_only_and_says_how_to_see_the_others(parser: argparse.ArgumentParser) -> None:
    shown = parser.format_help()
    assert "--scores" in shown
    assert HELP_MEGATRON in shown
    assert "--seq-length" not in shown


def test_the_help_of_megatron_shows_all_flags(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse_args([HELP_MEGATRON])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert {"--seq-length", "--weight-decay", "--scores"} <= set(shown.split())
    assert "100 % of a row" in shown


def test_an_unknown_flag_is_named_with_the_one_that_was_meant(parser: argparse.ArgumentParser) -> None:
    with pytest.raises(UsageError, match=r"^program: --seq-lenght is unknown: did you mean --seq-length\? \("):
        parser.parse_args(["--seq-lenght", "1024"])
    with pytest.raises(UsageError, match="argument --seq-length: invalid int value: 'x'"):
        parser.parse_args(["--seq-length", "x"])


def test_all_unknown_flags_are_named_without_their_values() -> None:
    parser = CommandParser("miniplm tool", allow_abbrev=False)
    parser.add_argument("--input")
    with pytest.raises(UsageError) as raised:
        parser.parse_args(["--inptu=a", "--nonsense", "7", "--input", "b"])
    assert str(raised.value).startswith(
        "miniplm tool: --inptu is unknown: did you mean --input?; --nonsense is unknown ("
    )
    with pytest.raises(UsageError, match="miniplm tool: stray is unknown "):
        parser.parse_args(["stray"])


def test_a_required_flag_that_is_mistyped_is_found(parser: argparse.ArgumentParser) -> None:
    """argparse looks for what is missing first, and never comes to what is unknown."""
    parser.add_argument("--micro-batch-size", required=True)
    with pytest.raises(UsageError) as raised:
        parser.parse_args(["--mirco-batch-size=2", "--seq-length", "8", "--weight-decya", "0"])
    assert str(raised.value) == (
        "program: the following arguments are required: --micro-batch-size; "
        "--mirco-batch-size is unknown: did you mean --micro-batch-size? (--help lists the flags)"
    )


@pytest.mark.parametrize(
    ("words", "suggested"),
    [
        (["--inptu", "a"], ["; --inptu is unknown: did you mean --input?"]),
        (["--inp", "a"], []),  # an abbreviation that argparse takes
        (["--output", "x", "--inptu"], ["; --inptu is unknown: did you mean --input?"]),
        (["--", "--inptu"], []),
        (["--seq-length", "8"], []),  # of another program, such as Megatron
        (["-i", "a"], []),
    ],
)
def test_only_words_that_may_be_the_missing_flag_are_named(words: list[str], suggested: list[str]) -> None:
    parser = CommandParser("miniplm tool")
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--input")
    one.add_argument("--input-list", action="append")
    parser.add_argument("--output", nargs="?", required=True)
    with pytest.raises(UsageError) as raised:
        parser.parse_args(words)
    clauses = str(raised.value).removesuffix(" (--help lists the flags)").split("; ")[1:]
    assert [f"; {clause}" for clause in clauses] == suggested


def test_a_missing_flag_that_only_some_uses_need_is_found_too() -> None:
    error = MissingFlagError("--load", "give a checkpoint")
    words = ["--laod", "CKPT", "--lr=1", "--seq-length", "8"]
    assert str(error.with_suggestion(words)) == (
        "--load is missing: give a checkpoint; --laod is unknown: did you mean --load?"
    )
    assert str(error.with_suggestion(["--lr=1", "load"])) == "--load is missing: give a checkpoint"


def test_parsing_values_is_left_alone(parser: argparse.ArgumentParser) -> None:
    shorten(parser, fail)
    arguments = parser.parse_args(["--seq-length", "8", "--scores", "s"])
    assert vars(arguments) == {"seq_length": 8, "weight_decay": None, "scores": "s"}


def test_help_before_megatron_is_imported_is_the_same_page(
    parser: argparse.ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument_group("miniplm scoring").add_argument("--scores", help="where the scores go")

    print_help("program", "What it does.", [add_arguments])
    shown = capsys.readouterr().out
    assert shown.startswith("usage: program <flags>\n\nWhat it does.\n")
    assert parser.format_help().split("\n\n")[-2:] == shown.split("\n\n")[-2:]


def test_what_resembles_nothing_brings_no_suggestion() -> None:
    assert did_you_mean("--xyz", ["--ratio", "--output"]) == ""
    assert did_you_mean("--ration", ["--ratio", "--output"]) == ": did you mean --ratio?"


def flags_beside_megatrons() -> dict[str, set[str]]:
    """The flags of ours that Megatron's parser is given, by program, with all their spellings."""
    providers = {"pretrain_gpt, launch": [add_training_flags]}
    for program in sorted(MEGATRON_PROGRAMS - {"convert-checkpoint"}):  # whose flags are taken out first
        providers[program] = list(flags_of(program))
    found = {}
    for program, add_all in providers.items():
        parser = CommandParser(program, add_help=False)
        for add_arguments in add_all:
            add_arguments(parser)
        accept_other_spellings(parser)
        found[program] = {flag for flag in parser._option_string_actions if flag.startswith("--")}
    return found


@pytest.mark.parametrize(("program", "ours"), flags_beside_megatrons().items())
def test_no_flag_of_ours_is_one_of_megatrons(program: str, ours: set[str]) -> None:
    """Of any release from 0.17 to 0.20; `tests/contract` adds ours to the installed one."""
    lines = (Path(__file__).parents[1] / "support" / "megatron_flags.txt").read_text().splitlines()
    megatrons = {line for line in lines if line.startswith("--")}
    assert {"--seq-length", "--tensor-model-parallel-size", "--load"} <= megatrons
    assert ours
    assert not ours & megatrons


def test_training_flags_have_our_prefix() -> None:
    """They stand among the flags of a user's own job."""
    ours = flags_beside_megatrons()["pretrain_gpt, launch"]
    assert all(flag.startswith("--miniplm-") for flag in ours)
    bare = {flag for flags in flags_beside_megatrons().values() for flag in flags} - ours
    assert {"--corpus", "--miniplm-corpus", "--scores", "--miniplm-scores"} <= bare


def test_a_flag_may_be_given_by_any_of_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    parser = CommandParser("program")
    for flag in ("--corpus", "--rank-by", "--workers"):
        parser.add_argument(flag, required=True)
    words = ["--miniplm-corpus", "a", "--from-scores=-teacher", "--processes", "3"]
    assert vars(parser.parse_args(words)) == {"corpus": "a", "rank_by": "-teacher", "workers": "3"}
    assert given_flags(words) == {"--corpus", "--rank-by", "--workers"}
    announce_former_spellings(words)
    assert capsys.readouterr().err.splitlines() == [
        "--from-scores is now --rank-by; the old name works in this release only",
        "--processes is now --workers; the old name works in this release only",
    ]
    assert "--miniplm-corpus" not in parser.format_help()
    with pytest.raises(UsageError, match="--miniplm-scores is unknown"):
        CommandParser("other").parse_args(["--miniplm-scores", "a"])
