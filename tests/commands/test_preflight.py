"""Flags of stages are parsed before anything is submitted; the real parser of Megatron in test_pipeline_commands.py."""

import pytest

from megatron_miniplm.commands import preflight
from megatron_miniplm.commands.preflight import StageCommand, find_faults, read_commands

SELECTION = "miniplm difference-sampling --teacher-scores t --reference-scores r --output o"
SCORING = "miniplm score-corpus --corpus c --scores s"
LAUNCHED = "python -m megatron_miniplm.launch ~/Megatron-LM/pretrain_gpt.py --num-layers 2 --flag-of-the-script"


@pytest.fixture
def no_megatron(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a login node."""
    monkeypatch.setattr(preflight, "_megatron_parser", lambda: None)


def faults(*lines: str) -> list[str]:
    return list(find_faults([StageCommand(stage="x", words=tuple(line.split())) for line in lines]))


def test_commands_keep_words_that_a_shell_would_change() -> None:
    words = (b"miniplm", b"report", b"a b\n", b"", b"caf\xe9")
    stream = b"".join(word + b"\0" for word in (b"select", b"5", *words, b"evaluate", b"1", b"true"))
    assert read_commands(stream) == [
        StageCommand(stage="select", words=("miniplm", "report", "a b\n", "", "caf\udce9")),
        StageCommand(stage="evaluate", words=("true",)),
    ]
    assert read_commands(b"") == []


def test_every_command_that_cannot_be_parsed_is_named_with_its_stage() -> None:
    found = faults(
        f"{SELECTION} --ratio 0.5",
        f"{SELECTION} --ration 0.5",
        f"{SELECTION} --ratio half",
        "miniplm report",
        "miniplm materialize --help",
    )
    assert len(found) == 4
    assert all(fault.startswith("stage x: miniplm ") for fault in found)
    assert "--ration is unknown: did you mean --ratio" in found[0]
    assert "argument --ratio: invalid float value: 'half'" in found[1]


@pytest.mark.usefixtures("no_megatron")
@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("miniplm score-corpus --corpus c --scores s --no-flag-of-ours 3", None),
        (
            "miniplm score-corpus --corpus c --scores s --miniplm-flaot32",
            "did you mean --miniplm-float32",
        ),
        ("miniplm score-corpus --corpus c", "required: --scores"),
        ("python -m megatron_miniplm.pretrain_gpt --miniplm-kd-alfa=1", "did you mean --miniplm-kd-alpha"),
    ],
)
def test_without_megatron_our_flags_are_checked(line: str, fault: str | None) -> None:
    found = faults(line)
    assert bool(found) == bool(fault)
    assert fault is None or fault in found[0]


def test_of_a_script_only_our_flags_are_checked() -> None:
    assert faults(LAUNCHED, f"{LAUNCHED} --miniplm-weighting loss") == []
    (fault,) = faults(f"{LAUNCHED} --miniplm-weighting lost")
    assert "invalid choice: 'lost'" in fault
