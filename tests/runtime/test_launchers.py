"""What ranks learn from srun, and what a job script learns from ranks."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.command_line import report
from megatron_miniplm.runtime.launchers import ERROR_FILE_VARIABLE, EXIT_CODES_VARIABLE, adopt_srun


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment, of task 5 of 8 on two nodes."""
    environment = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "2",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NODELIST": "node[3-4]",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "MASTER_ADDR": "node3",
    }
    monkeypatch.setattr(os, "environ", environment)
    return environment


#: A program that ends with an exception that nobody catches.
CRASH = """
from megatron_miniplm.runtime.launchers import leave_exit_code_of_crashes
leave_exit_code_of_crashes()
raise SystemError("a bug")
"""


def test_a_task_of_srun_is_a_rank(step: dict[str, str]) -> None:
    adopt_srun()
    expected = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "node3"}
    assert {name: step[name] for name in expected} == expected
    assert 1024 < int(step["MASTER_PORT"]) < 32768, "not among the ports that the kernel gives to clients"


def test_a_task_with_one_gpu_of_its_own_calls_it_0(step: dict[str, str]) -> None:
    step["CUDA_VISIBLE_DEVICES"] = "1"
    adopt_srun()
    assert (step["RANK"], step["LOCAL_RANK"]) == ("5", "0")


def test_steps_of_a_job_meet_at_different_ports(step: dict[str, str]) -> None:
    adopt_srun()
    first = step.pop("MASTER_PORT")
    del step["RANK"]
    step["SLURM_STEP_ID"] = "3"
    adopt_srun()
    assert step["MASTER_PORT"] != first


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "0", "WORLD_SIZE": "1"},  # a rank of `srun torchrun`
        {"SLURM_STEP_ID": ""},  # a batch script: sbatch sets SLURM_PROCID too
        {"SLURM_STEP_NUM_TASKS": "1"},  # an interactive shell
    ],
)
def test_others_stay_as_they_are(step: dict[str, str], change: dict[str, str]) -> None:
    step.update(change)
    before = dict(step)
    adopt_srun()
    assert step == before


def test_the_first_node_is_asked_of_slurm(step: dict[str, str], tmp_path: Path) -> None:
    del step["MASTER_ADDR"]
    step["PATH"] = str(tmp_path)
    with pytest.raises(InputError, match=r"the first node of this step is unknown .*: set MASTER_ADDR"):
        adopt_srun()
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"\n')
    scontrol.chmod(scontrol.stat().st_mode | stat.S_IXUSR)
    step["PATH"] = f"{tmp_path}:/usr/bin:/bin"
    adopt_srun()
    assert step["MASTER_ADDR"] == "node3"


def test_a_rank_leaves_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXIT_CODES_VARIABLE, str(tmp_path / "job"))
    assert run_tool("inspect", [str(tmp_path / "nothing")]) == 2
    elsewhere = InputError("reported by rank 0")
    elsewhere.reported_elsewhere = True
    monkeypatch.setattr("megatron_miniplm.runtime.command_line.LAST_WORD_SECONDS", 0)
    report(elsewhere)
    assert [path.name for path in tmp_path.iterdir()] == ["job.2"]


def test_a_crash_leaves_exit_code_1(tmp_path: Path) -> None:
    environment = {**os.environ, EXIT_CODES_VARIABLE: str(tmp_path / "job")}
    process = subprocess.run([sys.executable, "-c", CRASH], env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    assert "SystemError: a bug" in process.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["job.1"]


def test_below_the_report_of_torchrun_the_last_line_is_our_error(tmp_path: Path) -> None:
    """And the report, which shows the root cause, quotes it; torchrun's exit code stays 1."""
    environment = {name: value for name, value in os.environ.items() if name != EXIT_CODES_VARIABLE}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "megatron_miniplm"]
    missing = tmp_path / "nothing"
    command = [*launch, *["score-corpus", "--load", "x", "--scores", "y", "--corpus"], str(missing)]
    process = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)
    assert process.returncode == 1
    lines = process.stderr.splitlines()
    (error,) = (line for line in lines if line.startswith("error: "))
    assert error.startswith(f"error: {missing}.idx does not exist")
    assert f"  traceback : {error}" in lines
    assert lines[-1] == f"miniplm: {error}"


def test_a_rank_leaves_its_error_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXIT_CODES_VARIABLE, str(tmp_path / "job"))
    report(InputError("no such\ncorpus"))
    assert (tmp_path / "job.2").read_text() == "error: no such\\ncorpus\n"


def test_torchrun_is_told_of_a_crash(tmp_path: Path) -> None:
    environment = {**os.environ, ERROR_FILE_VARIABLE: str(tmp_path / "error.json")}
    subprocess.run([sys.executable, "-c", CRASH], env=environment, capture_output=True)
    message = json.loads((tmp_path / "error.json").read_text())["message"]
    assert message["extraInfo"]["py_callstack"].endswith("SystemError: a bug")
    assert int(message["extraInfo"]["timestamp"]) > 0
