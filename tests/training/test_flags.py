"""The parser of a user's script once our flags are plugged in, on a parser that is filled as Megatron fills its."""

import argparse

import pytest

from megatron_miniplm.training import plugin


def add_megatron_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument_group("training").add_argument("--seq-length", type=int)
    return parser


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    monkeypatch.setattr("megatron_miniplm.runtime.command_line.LAST_WORD_SECONDS", 0)
    parser = plugin._flags(add_megatron_arguments)(argparse.ArgumentParser("train.py", allow_abbrev=False))
    parser.add_argument_group("of the script").add_argument("--own-flag", default="none")
    return parser


@pytest.mark.parametrize(("rank", "is_said"), [("0", True), ("1", False)])
def test_a_mistyped_flag_leaves_with_one_line_on_one_rank(
    parser: argparse.ArgumentParser,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    is_said: bool,
) -> None:
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["--seq-lenght", "8"])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: train.py: --seq-lenght is unknown: did you mean --seq-length?") == is_said
    assert said.count("\n") == is_said


def test_flags_of_the_script_megatron_and_ours_are_parsed(parser: argparse.ArgumentParser) -> None:
    found = parser.parse_args(["--seq-length", "8", "--miniplm-weighting", "loss", "--own-flag", "given"])
    assert (found.seq_length, found.miniplm_weighting, found.own_flag) == (8, "loss", "given")
    shown = parser.format_help()
    assert "--own-flag" in shown
    assert "--miniplm-selection" in shown
    assert "--seq-length" not in shown
