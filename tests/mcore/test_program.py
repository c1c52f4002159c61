import runpy
import socket
from pathlib import Path

import pytest
from gloo_ranks import run_ranks

from megatron_miniplm.errors import FingerprintMismatchError, InputError, NonFiniteScoreError
from megatron_miniplm.mcore import program
from megatron_miniplm.mcore.program import megatron_errors
from megatron_miniplm.runtime.command_line import report


def raise_in_megatron_errors(error: BaseException) -> None:
    with megatron_errors("these flags"):
        raise error


@pytest.mark.parametrize("kind", [AssertionError, ValueError, RuntimeError, OSError])
def test_a_reason_of_megatron_becomes_one_line_with_its_place(kind: type[Exception]) -> None:
    with pytest.raises(
        InputError, match=r"^Megatron refuses these flags: 4 is not 5 \(test_program.py:\d+\)$"
    ) as raised:
        raise_in_megatron_errors(kind("4 is\n   not 5"))
    assert isinstance(raised.value.__cause__, kind)


def test_an_assertion_without_a_message_is_quoted() -> None:
    with pytest.raises(InputError) as raised, megatron_errors("these flags"):
        raise AssertionError
    line = "raise AssertionError does not hold"
    assert str(raised.value).startswith(f"Megatron refuses these flags: {line} (test_program.py:")


def test_a_flag_that_megatron_misses_is_named(tmp_path: Path) -> None:
    script = tmp_path / "arguments.py"
    script.write_text("class args: encoder_seq_length = None\nassert args.encoder_seq_length is not None\n")
    with pytest.raises(InputError) as raised, megatron_errors("these flags"):
        runpy.run_path(str(script))
    assert str(raised.value) == "--seq-length is missing: Megatron needs it with these flags"
    with pytest.raises(InputError, match=r"^--num-attention-heads is missing: "):
        raise_in_megatron_errors(AssertionError("num_attention_heads argument is None"))


def test_our_own_errors_pass_unchanged() -> None:
    error = FingerprintMismatchError("another corpus")
    with pytest.raises(FingerprintMismatchError) as raised:
        raise_in_megatron_errors(error)
    assert raised.value is error


def test_a_bug_is_not_dressed_up() -> None:
    with pytest.raises(TypeError):
        raise_in_megatron_errors(TypeError("a bug"))


def test_a_single_process_finds_its_own_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "")
    monkeypatch.setenv("MASTER_PORT", "")
    monkeypatch.delenv("MASTER_PORT")  # set before, so that monkeypatch takes away what the program sets
    program.ensure_rendezvous()
    with socket.socket() as listener:
        listener.bind((program.os.environ["MASTER_ADDR"], int(program.os.environ["MASTER_PORT"])))
        assert listener.getsockname() == ("127.0.0.1", int(program.os.environ["MASTER_PORT"]))


def test_a_launcher_keeps_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    monkeypatch.setenv("MASTER_PORT", "4242")
    program.ensure_rendezvous()
    assert (program.os.environ["MASTER_ADDR"], program.os.environ["MASTER_PORT"]) == ("node7", "4242")


def test_rank_zero_checks_for_all() -> None:
    run_ranks(check_on_rank_zero, 2)


def check_on_rank_zero(rank: int) -> None:
    """Run on each rank: the result and the error of rank 0 reach all, and one rank prints."""
    called = []
    assert program.on_rank_zero(lambda: called.append(rank) or {"blocks": [1, 2]}) == {"blocks": [1, 2]}
    assert called == ([0] if rank == 0 else [])

    def refuse() -> None:
        raise InputError("no such corpus")

    with pytest.raises(InputError, match="no such corpus") as raised:
        program.on_rank_zero(refuse)
    assert raised.value.reported_elsewhere == (rank != 0)


@pytest.mark.parametrize(
    ("rank", "elsewhere", "is_printed"), [("0", False, True), ("3", False, True), ("3", True, False)]
)
def test_an_error_that_one_rank_alone_has_is_printed_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, elsewhere: bool, is_printed: bool
) -> None:
    """Such as a NaN, which only the last pipeline stage sees, or a disk that is full on one node."""
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", rank)
    error = NonFiniteScoreError("sequence 4 has an NLL of nan")
    error.reported_elsewhere = elsewhere
    assert report(error) == 2
    assert ("error: sequence 4 has an NLL of nan" in capsys.readouterr().err) == is_printed
