"""What programs and those who start them tell each other: which rank this is, and how it ended.

torchrun and srun say the first in different variables; neither passes the exit code of a rank on.
"""

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from megatron_miniplm.errors import InputError

#: Prefix of empty files, set by slurm/job.sh: a rank that ends with code 2 makes <prefix>.2.
EXIT_CODES_VARIABLE = "MINIPLM_EXIT_CODES"


def adopt_srun() -> None:
    """Where srun has started several tasks, set RANK, WORLD_SIZE, LOCAL_RANK and the like as torchrun would.

    A batch script outside srun has no step and is one process, whatever its job has asked for. Variables that are set
    stay, so ranks of `srun torchrun` keep theirs.

    Raises:
        InputError: the step is on several nodes and does not say where its first task runs.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    if "RANK" in os.environ or not step.isdecimal() or int(os.environ["SLURM_STEP_NUM_TASKS"]) == 1:
        return
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_host()
    # Steps of one job get different ports, and so do jobs on one node; below those that the kernel gives to clients.
    os.environ.setdefault("MASTER_PORT", str(20000 + (int(os.environ["SLURM_JOB_ID"]) * 7 + int(step)) % 10000))
    os.environ["RANK"], os.environ["WORLD_SIZE"] = os.environ["SLURM_PROCID"], os.environ["SLURM_STEP_NUM_TASKS"]
    os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    # With --gpus-per-task=1 every task sees one GPU, as number 0.
    sees_one_gpu = os.environ.get("CUDA_VISIBLE_DEVICES", ",").count(",") == 0
    os.environ["LOCAL_RANK"] = "0" if sees_one_gpu else os.environ["SLURM_LOCALID"]


def leave_exit_code(code: int) -> None:
    """Tell the job script how this rank ends, if it has asked."""
    if prefix := os.environ.get(EXIT_CODES_VARIABLE):
        with suppress(OSError):
            Path(f"{prefix}.{code}").touch()


def leave_exit_code_of_crashes() -> None:
    """From now on, an exception that nobody catches leaves exit code 1."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave_exit_code(1)
        show(kind, error, trace)

    if os.environ.get(EXIT_CODES_VARIABLE):
        sys.excepthook = hook


def _first_host() -> str:
    """Where task 0 of a step runs."""
    if os.environ.get("SLURM_STEP_NUM_NODES") == "1":
        return socket.gethostname()
    try:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
        nodes = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, KeyError, subprocess.CalledProcessError) as error:
        raise InputError(f"the first node of this step is unknown ({error}): set MASTER_ADDR") from None
    return nodes.stdout.split()[0]
