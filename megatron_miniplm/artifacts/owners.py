"""Who works: a process by a name that no other ever has, and whether it can be seen to be dead."""

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Self

from megatron_miniplm.artifacts.json_files import parse_json
from megatron_miniplm.errors import CorruptArtifactError

_PROC = Path("/proc")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that claims work.

    Attributes:
        name: unique, and usable as part of a file name.
        job: of SLURM, `<job>` or `<array>_<task>`; None outside.
        since: when it began, seconds of the Unix epoch by its own clock; for people only.
        boot, pid_namespace, process_start: with `host` and `pid` they tell a process from every other that ever had
            this number; empty or 0 where there is no /proc.
    """

    name: str
    host: str
    pid: int
    job: str | None
    since: int
    boot: str
    pid_namespace: str
    process_start: int

    @classmethod
    def of_this_process(cls, name: str | None = None) -> Self:
        host, pid, job = socket.gethostname(), os.getpid(), slurm_job(os.environ)
        parts = [host, str(pid), *([job] if job else []), secrets.token_hex(4)]
        _, process_start = _state_and_start(pid) or ("", 0)
        return cls(
            name=_NOT_IN_NAMES.sub("_", name or "-".join(parts)),
            host=host,
            pid=pid,
            job=job,
            since=int(time.time()),
            boot=_boot(),
            pid_namespace=_pid_namespace(),
            process_start=process_start,
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The owner that a file holds; None if it is not whole (yet). Does not wait at a FIFO.

        Raises:
            OSError: the file does not exist or cannot be read.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return cls.from_bytes(os.read(descriptor, _MAX_BYTES))
        finally:
            os.close(descriptor)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """The owner in the content of a file; None if it is not whole (yet), or was not written by `to_bytes`."""
        try:
            owner = cls(**parse_json(data, where="a claim", what="record of its owner"))
        except (CorruptArtifactError, TypeError):
            return None
        texts = (owner.name, owner.host, owner.job or "", owner.boot, owner.pid_namespace)
        numbers = (owner.pid, owner.since, owner.process_start)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
            return None
        return owner if owner.pid > 0 and _NAME.fullmatch(owner.name) else None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def has_died(self) -> bool:
        """Whether the process is certainly gone; False where it cannot be seen from here.

        Containers of one host have its boot id and often its name, but process ids of their own: a process of another
        namespace is not judged. Nor is one that /proc does not show but that is there (`hidepid` hides those of other
        users): its heartbeat tells.
        """
        if not self.boot or not self.pid_namespace or (self.host, self.boot) != (socket.gethostname(), _boot()):
            return False
        if self.pid_namespace != _pid_namespace():
            return False
        found = _state_and_start(self.pid)
        if found is None:
            return not _exists(self.pid)
        state, process_start = found
        return state in "ZXx" or (self.process_start != 0 and process_start != self.process_start)

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid}" + (f" (job {self.job})" if self.job else "")


def slurm_job(environment: Mapping[str, str]) -> str | None:
    """As `squeue` writes it: `4711`, or `4711_3` for a task of an array."""
    if "SLURM_ARRAY_JOB_ID" in environment and "SLURM_ARRAY_TASK_ID" in environment:
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


@cache
def _boot() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


@cache
def _pid_namespace() -> str:
    try:
        return os.readlink(_PROC / "self/ns/pid")
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    """Whether there is a process of this number in our namespace, of whatever user; does not need /proc."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # EPERM: it is another user's
        return True
    return True


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """State and start time (clock ticks since boot) of a process, proc(5); None where /proc shows none."""
    try:
        stat = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before may hold blanks and parentheses
    return fields[0], int(fields[19])
