"""The processes that select together: of this host, or of torchrun or srun. Results do not depend on their number.

Processes and not threads: half of the work on a block of scores holds the interpreter's lock.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Protocol

import numpy as np

from megatron_miniplm.errors import STOP_SIGNALS, InputError
from megatron_miniplm.runtime.launchers import adopt_srun
from megatron_miniplm.runtime.processes import can_fork

#: Processes without a launcher; each takes some 60 MB.
MAX_FORKED = 16


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


class ForkedRanks:
    """Processes of one host that talk through pipes to the first."""

    def __init__(self, rank: int, size: int, pipes: Sequence[Connection]) -> None:
        self.rank = rank
        self.size = size
        self._pipes = pipes  # of the first to all others, or of another to the first

    def sum(self, array: np.ndarray) -> np.ndarray:
        if self.rank:
            self._pipes[0].send(array)
            return np.asarray(_received(self._pipes[0]))
        total = array.copy()
        for pipe in self._pipes:
            total += _received(pipe)
        for pipe in self._pipes:
            pipe.send(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        if self.rank:
            self._pipes[0].send(value)
            return list(_received(self._pipes[0]))
        values = [value, *map(_received, self._pipes)]
        for pipe in self._pipes:
            pipe.send(values)
        return values

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()


@dataclass(frozen=True)
class _Failed:
    """What a process sends to the first in place of a value, before it ends."""

    error: BaseException


def _received(pipe: Connection) -> Any:
    try:
        value = pipe.recv()
    except (EOFError, ConnectionResetError):
        raise InputError("one of the processes was ended from outside, most often for lack of memory") from None
    if isinstance(value, _Failed):
        raise value.error
    return value


def run_on_ranks[Result](body: Callable[[Ranks], Result], num_processes: int | None = None) -> Result:
    """Call `body` on the ranks that a launcher has started, or else in so many processes of this host.

    Args:
        num_processes: default: the cores of this process, at most 16, where it can be forked without losing a thread.

    Returns:
        What it returns on this rank, or on the first of the forked ones.
    """
    ranks = ranks_of_launcher()
    if num_processes is None:
        num_processes = min(len(os.sched_getaffinity(0)), MAX_FORKED) if can_fork() else 1
    if ranks is not None or num_processes == 1:
        ranks = ranks or OneProcess()
        try:
            return body(ranks)
        finally:
            ranks.close()
    return _run_forked(body, num_processes)


def _run_forked[Result](body: Callable[[Ranks], Result], size: int) -> Result:
    fork = multiprocessing.get_context("fork")
    os.environ["LOCAL_WORLD_SIZE"] = str(size)
    pipes: list[Connection] = []
    processes = []
    try:
        for rank in range(1, size):
            ours, theirs = fork.Pipe()
            process = fork.Process(target=_run_child, args=(body, rank, size, theirs, [*pipes, ours]), daemon=True)
            with _stop_signals_blocked():  # the process unblocks them where it can handle them
                process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return body(ForkedRanks(0, size, pipes))
    except BaseException:
        for process in processes:
            process.terminate()  # `run_tool` makes an interrupt of it: files that are being written are removed
        raise
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join()


def _run_child(
    body: Callable[[Ranks], Any], rank: int, size: int, pipe: Connection, of_the_first: Sequence[Connection]
) -> None:
    """One of the further processes; it ends when the first does, whose pipe then breaks."""
    for other in of_the_first:
        other.close()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        body(ForkedRanks(rank, size, [pipe]))
    except BaseException as error:
        with suppress(OSError):
            pipe.send(_Failed(error))
    finally:
        os._exit(0)  # even when a second signal came meanwhile: the first process says what went wrong


@contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def ranks_of_launcher() -> Ranks | None:
    """The ranks that torchrun or srun has started; None without either.

    Raises:
        InputError: see `launchers.adopt_srun`.
    """
    adopt_srun()
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    return TorchRanks(rank, size) if size > 1 else None
