"""Processes that select together: forked ones in programs of their own, since pytest has threads."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from megatron_miniplm.selection import ranks

PREAMBLE = """\
import os, sys, time
import numpy as np
from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.ranks import run_on_ranks
"""


def run_program(tmp_path: Path, body: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "program.py"
    path.write_text(PREAMBLE + textwrap.dedent(body))
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=60)


@pytest.mark.parametrize("num_processes", [1, 2, 4])
def test_sums_and_gathers(tmp_path: Path, num_processes: int) -> None:
    process = run_program(
        tmp_path,
        f"""
        def body(ranks):
            mine = np.arange(3) + ranks.rank
            total = ranks.sum(mine)
            assert mine.tolist() == [ranks.rank, ranks.rank + 1, ranks.rank + 2], "the argument is changed"
            found = ranks.gather((ranks.rank, total.tolist(), os.getpid()))
            assert found == ranks.gather(found[ranks.rank]), "ranks have gathered something else"
            return found
        found = run_on_ranks(body, {num_processes})
        print([(rank, total) for rank, total, _ in found], len({{pid for _, _, pid in found}}))
        """,
    )
    n = num_processes
    total = [n * place + n * (n - 1) // 2 for place in range(3)]
    assert (process.stdout, process.stderr) == (f"{[(rank, total) for rank in range(n)]} {n}\n", "")


def test_an_error_of_another_process_is_raised_by_the_first(tmp_path: Path) -> None:
    process = run_program(
        tmp_path,
        """
        def body(ranks):
            if ranks.rank == 2:
                raise InputError("sequence 7 is no number")
            return ranks.gather(ranks.rank)
        try:
            run_on_ranks(body, 3)
        except InputError as error:
            print(error)
        """,
    )
    assert (process.stdout, process.stderr) == ("sequence 7 is no number\n", "")


def test_a_process_that_is_killed_is_no_silence(tmp_path: Path) -> None:
    process = run_program(
        tmp_path,
        """
        def body(ranks):
            if ranks.rank == 1:
                os.kill(os.getpid(), 9)
            return ranks.sum(np.zeros(2, np.int64))
        try:
            run_on_ranks(body, 2)
        except InputError as error:
            print(error)
        """,
    )
    assert process.stdout.startswith("one of the processes was ended from outside")


def test_an_error_of_the_first_ends_the_others(tmp_path: Path) -> None:
    process = run_program(
        tmp_path,
        """
        def body(ranks):
            if ranks.rank == 0:
                raise InputError("here")
            time.sleep(600)
        start = time.monotonic()
        try:
            run_on_ranks(body, 2)
        except InputError as error:
            print(error, time.monotonic() - start < 30)
        """,
    )
    assert process.stdout == "here True\n"


def test_processes_do_not_outlive_the_first(tmp_path: Path) -> None:
    """Killed, it can end nobody: they find its pipe broken."""
    path = tmp_path / "program.py"
    pids = tmp_path / "pid"
    body = f"""
        def body(ranks):
            if ranks.rank == 1:
                open({str(pids)!r}, "w").write(str(os.getpid()))
                ranks.gather(0)
            time.sleep(600)
        run_on_ranks(body, 2)
        """
    path.write_text(PREAMBLE + textwrap.dedent(body))
    with subprocess.Popen([sys.executable, str(path)]) as process:
        deadline = time.monotonic() + 60
        while not (pids.exists() and pids.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    child = Path(f"/proc/{pids.read_text()}")
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the ranks of a launcher are made with; the environment is an empty one."""
    made: list[tuple[int, int]] = []
    monkeypatch.setattr(ranks, "TorchRanks", lambda rank, size: made.append((rank, size)))
    monkeypatch.setattr(os, "environ", {})
    return made


def test_no_launcher(launched: list[tuple[int, int]]) -> None:
    assert ranks.ranks_of_launcher() is None


def test_torchrun(launched: list[tuple[int, int]]) -> None:
    os.environ.update(RANK="3", WORLD_SIZE="8")
    ranks.ranks_of_launcher()
    assert launched == [(3, 8)]


def test_srun(launched: list[tuple[int, int]]) -> None:
    os.environ.update(SLURM_JOB_ID="77", SLURM_STEP_ID="2", SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NUM_NODES="1")
    os.environ.update(SLURM_PROCID="1", SLURM_LOCALID="1")
    ranks.ranks_of_launcher()
    assert launched == [(1, 4)]


def test_a_stop_signal_while_selecting(tmp_path: Path) -> None:
    """Exit code 75, and nothing half-written stays."""
    path = tmp_path / "program.py"
    body = f"""
        import signal
        from pathlib import Path
        from megatron_miniplm import cli
        from megatron_miniplm.artifacts.atomic import array_output
        from types import ModuleType
        directory = Path({str(tmp_path)!r}) / "output"
        def select(ranks):
            with array_output(directory / f"{{ranks.rank}}.npy", np.dtype("<i8")) as append:
                append(np.arange(10))
                (directory / f"{{ranks.rank}}.begun").touch()
                time.sleep(600)
        module = ModuleType("megatron_miniplm.commands.of_this_test", "Nothing.")
        vars(module).update(add_arguments=lambda parser: None, run=lambda arguments: run_on_ranks(select, 2))
        sys.modules[module.__name__] = module
        cli.COMMANDS["of-this-test"] = ("of_this_test", "")
        sys.exit(cli.run_tool("of-this-test", []))
        """
    path.write_text(PREAMBLE + textwrap.dedent(body))
    output = tmp_path / "output"
    output.mkdir()
    with subprocess.Popen([sys.executable, str(path)], stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while len(list(output.glob("*.begun"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75
    assert sorted(found.name for found in output.iterdir()) == ["0.begun", "1.begun"]


REFUSE_AT_ONCE = """
import signal
from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.ranks import _run_forked

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)

def body(ranks):
    if ranks.rank == 0:
        raise InputError("refused at once")
    signal.pause()

for _ in range(20):
    try:
        _run_forked(body, 4)
    except InputError:
        pass
"""


def test_a_refusal_leaves_no_traceback_of_other_processes(tmp_path: Path) -> None:
    """They are ended while they start, by a signal whose handler raises."""
    done = run_program(tmp_path, REFUSE_AT_ONCE)
    assert (done.returncode, done.stderr) == (0, "")
