"""What programs and those who start them tell each other: which rank this is, and how it ended.

torchrun and srun say the first in different variables; neither passes the exit code of a rank on. torchrun prints a
report of some 40 lines below the error of a rank.
"""

import json
import os
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from megatron_miniplm.errors import InputError

#: Prefix of files, set by slurm/job.sh: a rank that ends with code 2 makes <prefix>.2, which holds its error.
EXIT_CODES_VARIABLE = "MINIPLM_EXIT_CODES"
#: Set by torchrun for each rank: where the rank may say why it failed.
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
#: A program of its own, because torchrun prints its report after all ranks have ended. It says nothing where torchrun
#: goes on for longer, as with --max-restarts.
_PRINT_AFTERWARDS = """
import os, select, sys
torchrun, line = sys.argv[1:]
try:
    ended = select.select([os.pidfd_open(int(torchrun))], [], [], 120)[0]
except ProcessLookupError:
    ended = True
if ended:
    sys.stderr.write(line + "\\n")
"""


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


def leave_exit_code(code: int, error: str = "") -> None:
    """Tell the job script how this rank ends and why, if it has asked."""
    if prefix := os.environ.get(EXIT_CODES_VARIABLE):
        with suppress(OSError):
            Path(f"{prefix}.{code}").write_text(f"{error}\n" if error else "", encoding="utf-8", errors="replace")


def leave_exit_code_of_crashes() -> None:
    """From now on, an exception that nobody catches leaves exit code 1, and torchrun's report quotes it."""
    show = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave_exit_code(1)
        _write_error_file("".join(traceback.format_exception(kind, error, trace)).rstrip())
        show(kind, error, trace)

    if EXIT_CODES_VARIABLE in os.environ or ERROR_FILE_VARIABLE in os.environ:
        sys.excepthook = hook


def repeat_after_torchrun(line: str) -> None:
    """Have torchrun's report quote the error that this rank ends with, and print it once more below that report.

    A job script prints the error itself, below everything else.
    """
    if ERROR_FILE_VARIABLE not in os.environ:
        return
    _write_error_file(line)
    if EXIT_CODES_VARIABLE not in os.environ:
        with suppress(OSError):
            subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _PRINT_AFTERWARDS, str(os.getppid()), f"miniplm: {line}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # torchrun ends the process group of a rank
            )


def _write_error_file(text: str) -> None:
    """In the form that torch.distributed.elastic reads; an earlier error of this rank stays."""
    if path := os.environ.get(ERROR_FILE_VARIABLE):
        details = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError), open(path, "x", encoding="utf-8") as stream:
            json.dump({"message": {"message": text, "extraInfo": details}}, stream)


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
