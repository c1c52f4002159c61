"""The processes that select together: one, or those of torchrun or srun. Results do not depend on their number."""

import os
import socket
import subprocess
from typing import Any, Protocol

import numpy as np

from megatron_miniplm.errors import InputError


class Ranks(Protocol):
    """What processes need of one another; every method is a collective call.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    rank: int
    size: int

    def sum(self, array: np.ndarray) -> np.ndarray:
        """The sum of all ranks' integer arrays."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, by rank, on all ranks."""
        ...

    def close(self) -> None: ...


class OneProcess:
    """Ranks of a run without a launcher."""

    rank = 0
    size = 1

    def sum(self, array: np.ndarray) -> np.ndarray:
        return array

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def close(self) -> None:
        pass


class TorchRanks:
    """Ranks that talk through `torch.distributed` with gloo; torch is imported here, and nowhere else in selection."""

    def __init__(self, rank: int, size: int) -> None:
        import torch.distributed

        self.rank = rank
        self.size = size
        self._distributed = torch.distributed
        torch.distributed.init_process_group("gloo", rank=rank, world_size=size)

    def sum(self, array: np.ndarray) -> np.ndarray:
        import torch

        total = torch.from_numpy(array)
        self._distributed.all_reduce(total)
        return total.numpy()

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.size
        self._distributed.all_gather_object(gathered, value)
        return gathered

    def close(self) -> None:
        self._distributed.destroy_process_group()


def ranks_of_launcher() -> Ranks:
    """The ranks that torchrun or srun has started.

    torchrun sets RANK and WORLD_SIZE. srun sets SLURM_PROCID and SLURM_STEP_NUM_TASKS; a batch script outside srun has
    no step and is one process, whatever its job has asked for.

    Raises:
        InputError: a step of srun on several nodes does not say where its first task runs.
    """
    if "RANK" in os.environ:
        rank, size = int(os.environ["RANK"]), int(os.environ.get("WORLD_SIZE", "1"))
    elif os.environ.get("SLURM_STEP_ID", "").isdecimal():
        rank, size = int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_STEP_NUM_TASKS"])
        os.environ.setdefault("MASTER_ADDR", _first_host())
        # Steps of one job get different ports, and so do jobs on one node.
        step = int(os.environ["SLURM_JOB_ID"]) * 7 + int(os.environ["SLURM_STEP_ID"])
        os.environ.setdefault("MASTER_PORT", str(20000 + step % 20000))
        os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(size)
        os.environ["LOCAL_WORLD_SIZE"] = os.environ.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    else:
        return OneProcess()
    return TorchRanks(rank, size) if size > 1 else OneProcess()


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
