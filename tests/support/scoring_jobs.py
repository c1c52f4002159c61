"""Scoring jobs that tests start, watch and hit: a launcher, its ranks, and the blocks that appear meanwhile."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Self

from megatron_runs import TIMEOUT_SECONDS, environment
from rank_server import ForkedProcess, rank_server

from megatron_miniplm.artifacts.leases import CLAIMS, LEASE_SUFFIX, Owner

POLL_SECONDS = 0.01


def block_times(directory: Path) -> dict[str, int]:
    """When each published block was last written, nanoseconds, by file name."""
    return {path.name: path.stat().st_mtime_ns for path in (directory / "blocks").glob("*.npy")}


def litter(directory: Path) -> list[str]:
    """What nobody reads and a finished store must not hold."""
    names = [str(path.relative_to(directory)) for path in directory.rglob("*")]
    return sorted(name for name in names if name.endswith(".tmp") or name.startswith(CLAIMS))


class Job:
    """One scoring command, running; a context manager that leaves no process behind.

    Every rank has a session of its own, so that a job is its launcher and what that has started. Launcher and ranks are
    forked (see `rank_server`) unless torchrun itself is what is tested.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        num_ranks: int = 1,
        *,
        by_torchrun: bool = False,
        largest_file_bytes: int | None = None,
    ) -> None:
        self.directory = directory
        self._num_ranks = num_ranks
        self._stderr = TemporaryFile("w+")  # noqa: SIM115 - closed with the job
        self._process: subprocess.Popen[bytes] | ForkedProcess
        if by_torchrun:
            self._process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=self._stderr, env=environment(), start_new_session=True
            )
        else:
            self._process = rank_server().start(
                command,
                environment(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                largest_file_bytes=largest_file_bytes,
            )
        self._ranks: list[int] = []

    @property
    def ranks(self) -> list[int]:
        """Process ids of the living ranks, in the order in which they were started."""
        if self._num_ranks == 1:
            return [self._process.pid] if self._process.poll() is None else []
        self._ranks += [pid for pid in children_of(self._process.pid) if pid not in self._ranks]
        return [pid for pid in self._ranks if is_running(pid)]

    @property
    def stderr(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the job is to do before it ends."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert self._process.poll() is None, f"the job ended too early:\n{self.stderr[-3000:]}"
            assert time.monotonic() < deadline, self.stderr[-3000:]
            time.sleep(POLL_SECONDS)

    def wait_for_blocks(self, num_blocks: int) -> None:
        """Wait until one of its ranks claims blocks, and `num_blocks` more than there were by then are published."""
        self.wait_for(lambda: bool(self.ranks) and not claimants(self.directory).isdisjoint(self.ranks))
        enough = len(block_times(self.directory)) + num_blocks
        self.wait_for(lambda: len(block_times(self.directory)) >= enough)

    def send(self, number: signal.Signals, *, rank: int | None = None) -> None:
        """Signal one rank, or the launcher and all ranks."""
        ranks = self.ranks
        for pid in [self._process.pid, *ranks] if rank is None else [ranks[rank]]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    @property
    def first_failure(self) -> int | None:
        """Exit code of the first rank that failed; of a forked job that has ended."""
        assert isinstance(self._process, ForkedProcess)
        return self._process.first_failure

    def send_to_launcher(self, number: signal.Signals) -> None:
        assert len(self.ranks) == self._num_ranks  # known from now on, whatever becomes of the launcher
        self._process.send_signal(number)

    def catches(self, number: signal.Signals) -> bool:
        """Whether the only rank has a handler for a signal by now."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    def wait(self, timeout_seconds: float = TIMEOUT_SECONDS) -> int:
        """Wait until the launcher and all ranks are gone; returns the exit code."""
        deadline = time.monotonic() + timeout_seconds
        exit_code = self._process.wait(timeout_seconds)
        while self.ranks:
            assert time.monotonic() < deadline, f"ranks outlive their launcher:\n{self.stderr[-3000:]}"
            time.sleep(POLL_SECONDS)
        return exit_code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.send(signal.SIGKILL)
        self._process.wait()
        self._stderr.close()


def claimants(directory: Path) -> set[int]:
    """Process ids of those who have announced themselves in `claims/`, dead ones too."""
    owners = []
    for path in (directory / CLAIMS).glob(f"*{LEASE_SUFFIX}"):
        try:
            owners.append(Owner.from_bytes(path.read_bytes()))
        except FileNotFoundError:
            continue
    return {owner.pid for owner in owners if owner is not None}


def children_of(parent: int) -> list[int]:
    """Process ids, ascending."""
    found = []
    for entry in Path("/proc").iterdir():
        fields = _stat(int(entry.name)) if entry.name.isdecimal() else None
        if fields is not None and int(fields[1]) == parent:
            found.append(int(entry.name))
    return sorted(found)


def is_running(pid: int) -> bool:
    fields = _stat(pid)
    return fields is not None and fields[0] not in "ZXx"


def _stat(pid: int) -> list[str] | None:
    """proc(5), from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
