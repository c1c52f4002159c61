"""What a command costs: wall time, CPU time and memory of all its processes, and of nothing else."""

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from megatron_miniplm.errors import InputError

POLL_SECONDS = 0.05
#: Reading PSS walks the page tables of a process: at most this part of one core's time goes into it.
POLL_FRACTION = 0.05
LOG_TAIL_CHARACTERS = 2000


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one run of a command took, or several.

    Attributes:
        cpu_seconds: user and system time of the command and of every process below it that was waited for.
        peak_bytes: most memory that all its processes held at one poll; a shared page counts once.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_bytes: int

    @classmethod
    def typical(cls, runs: "Sequence[Cost]") -> "Cost":
        """The median of each time, and the highest of the peaks."""
        return cls(
            wall_seconds=statistics.median(run.wall_seconds for run in runs),
            cpu_seconds=statistics.median(run.cpu_seconds for run in runs),
            peak_bytes=max(run.peak_bytes for run in runs),
        )


def measure(command: Sequence[str], log_path: Path) -> Cost:
    """Run a command; what it prints goes to `log_path`.

    The kernel adds up a process's own CPU time and that of the children it has waited for, and hands the sum to
    `wait4`. Worker processes are waited for by the command, so they are in it.

    Raises:
        InputError: it failed.
    """
    with open(log_path, "wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        with MemoryPoll(process.pid) as memory:
            _, status, usage = os.wait4(process.pid, 0)
            wall_seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)  # Popen must not wait for it again
    if process.returncode:
        tail = log_path.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL_CHARACTERS:].strip()
        last_lines = " | ".join(tail.splitlines())
        raise InputError(f"exit code {process.returncode} of {' '.join(command)}, its last lines: {last_lines}")
    return Cost(wall_seconds=wall_seconds, cpu_seconds=usage.ru_utime + usage.ru_stime, peak_bytes=memory.peak_bytes)


class MemoryPoll:
    """Watches the memory of a process and all below it from a thread; use as a context manager."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _poll(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            start = time.perf_counter()
            self.peak_bytes = max(self.peak_bytes, self._held_bytes())
            pause = max(POLL_SECONDS, (time.perf_counter() - start) / POLL_FRACTION)

    def _held_bytes(self) -> int:
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return 0
        return sum(map(footprint_bytes, processes))


def footprint_bytes(process: psutil.Process) -> int:
    """PSS of a process (its own pages, and its share of those it shares), or RSS where the kernel does not tell."""
    try:
        try:
            return process.memory_full_info().pss or process.memory_info().rss
        except psutil.AccessDenied:
            return process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended just now
        return 0
