"""Who works on which block: leases in a shared directory, which expire by the clock of the file server.

    claims/<name>.lease     one per process: who it is; a thread touches it every RENEW_SECONDS
    claims/00000012.0       block 12 is claimed: a hard link to its owner's lease, so that one touch renews all claims
    claims/00000012.1       claimed again, because generation 0 has expired

Correct scores do not depend on leases. A block is published once (`artifacts.atomic`) and carries the identity of
its store. Leases only keep two processes from computing the same block. Format page: docs/formats.md.

- **Claim.** A process links generation 0, which only one can do. If the name exists and its owner is alive, the block
  is taken. If that claim has expired, the process tries the next generation, and so on.
- **Expiry.** A claim has expired if its modification time is EXPIRY_SECONDS older than that of our own lease, touched
  just now. No clock of a host is read. A process that has ended on the same host is noticed at once: every process
  holds a socket, which the kernel closes with it. So a job that is killed and restarted on its host does not wait.
- **Release.** All claims of a block are removed once it is published. A process that leaves blocks unfinished removes
  its claims of them, unless its lease has ever been expired. Then others may be about to go on to the next generation,
  so the claims stay, with the time 0. A stale process that comes back thus cannot remove or repeat the claim of
  another, and no claim has to be checked by a listing of the directory.

A claim costs three calls of the file system, whatever the number of processes (benchmarks/results/scale.md).
"""

import json
import logging
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Self

from megatron_miniplm.artifacts.atomic import NO_LINKS, TEMPORARY_SUFFIX, usable, write_new, write_once
from megatron_miniplm.artifacts.reading import parse_json
from megatron_miniplm.errors import CorruptArtifactError, unusable_path

logger = logging.getLogger(__name__)

CLAIMS = "claims"
LEASE_SUFFIX = ".lease"
RENEW_SECONDS = 10.0
EXPIRY_SECONDS = 60.0
_CLAIM = re.compile(r"(\d{8,})\.(\d+)")
_MAX_RECORD_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a lease.

    Attributes:
        name: unique; also the address of its socket.
        job: SLURM's, `<job>` or `<array>_<task>`; None outside SLURM.
        since: when it started, in seconds of the Unix epoch by its own clock; only shown to people.
        sockets: the boot and the network namespace in which `name` is an address; empty if it holds no socket.
    """

    name: str
    host: str
    pid: int
    job: str | None
    since: int
    sockets: str

    @classmethod
    def of_this_process(cls) -> Self:
        return cls(
            name=secrets.token_hex(8),
            host=socket.gethostname(),
            pid=os.getpid(),
            job=_slurm_job(),
            since=int(time.time()),
            sockets=_socket_scope(),
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """The owner in the content of a file; None if the file is not whole (yet) or was not written by `to_bytes`."""
        try:
            owner = cls(**parse_json(data, where="a claim", what="record of its owner"))
        except (CorruptArtifactError, TypeError):
            return None
        texts, numbers = (owner.name, owner.host, owner.job or "", owner.sockets), (owner.pid, owner.since)
        is_sound = all(isinstance(text, str) for text in texts) and all(type(number) is int for number in numbers)
        return owner if is_sound else None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    def has_ended(self) -> bool:
        """Whether the process is certainly gone; False if its socket could not be seen from here."""
        if not self.sockets or self.sockets != _socket_scope():
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
                probe.connect(socket_address(self.name))
        except ConnectionRefusedError:  # nobody holds it
            return True
        except OSError:
            return False
        return False

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid}" + (f" (job {self.job})" if self.job else "")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The highest claim of a block.

    Attributes:
        owner: None if its record cannot be read.
        alive: False if the next process may claim the block.
    """

    block: int
    generation: int
    owner: Owner | None
    alive: bool


def in_flight(directory: Path) -> list[Holder]:
    """Who works on what in a store, by block; one listing, and one read per claimed block."""
    claims = directory / CLAIMS
    highest: dict[int, int] = {}
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(claims):
            if claim := _CLAIM.fullmatch(name):
                highest[int(claim[1])] = max(int(claim[2]), highest.get(int(claim[1]), 0))
    now_ns = server_time_ns(claims) if highest else 0
    holders = []
    for block, generation in sorted(highest.items()):
        with suppress(FileNotFoundError):  # published just now
            owner, alive = _look(claims / claim_name(block, generation), lambda: now_ns, EXPIRY_SECONDS)
            holders.append(Holder(block=block, generation=generation, owner=owner, alive=alive))
    return holders


def claim_name(block: int, generation: int) -> str:
    return f"{block:08d}.{generation}"


def server_time_ns(directory: Path) -> int:
    """The modification time that a file made now in this directory gets; the local clock where none can be made."""
    path = directory / f".clock.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        write_new(path, b"", durable=False)
        try:
            return path.stat().st_mtime_ns
        finally:
            path.unlink(missing_ok=True)
    except OSError:
        return time.time_ns()


class Leases:
    """The lease of this process on one store, and its claims of blocks; a context manager.

    Args:
        directory: of the store.
        renew_seconds: between two renewals.
        expiry_seconds: without a renewal after which others may take a block. Where a file system stamps files with the
            clocks of the hosts (Lustre does), these must agree to much less than that.

    Raises:
        InputError: from every method, if the directory cannot be written.
    """

    def __init__(
        self, directory: Path, *, renew_seconds: float = RENEW_SECONDS, expiry_seconds: float = EXPIRY_SECONDS
    ) -> None:
        self.directory = directory / CLAIMS
        self.owner = Owner.of_this_process()
        self.lease_path = self.directory / f"{self.owner.name}{LEASE_SUFFIX}"
        self._renew_seconds = renew_seconds
        self._expiry_seconds = expiry_seconds
        self._socket: socket.socket | None = None
        self._renewed_ns = 0  # by the clock of the file server
        self._was_expired = False  # at any time
        self._held: dict[int, int] = {}  # generation by block
        self._copies: set[Path] = set()  # claims that no hard link could be made for; they have times of their own
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_renewing, name="lease", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(socket_address(self.owner.name))
        except OSError:  # only Linux has such addresses, and a sandbox may allow no such socket
            self.owner = replace(self.owner, sockets="")
        try:
            with usable(self.directory):
                self._write_lease()
        except BaseException:
            self._close_socket()
            raise
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):  # what is left will expire
            if self._held:
                self._give_up()
            self.lease_path.unlink()
        self._close_socket()
        with suppress(OSError):  # others are still there, or `ScoreStore.finish` was
            self.directory.rmdir()

    def claim(self, block: int) -> bool:
        """Claim a block unless another process works on it. Ask afterwards whether it has been published meanwhile."""
        if block in self._held:
            return False
        generation = 0
        with usable(self.directory):
            while not self._create(path := self.directory / claim_name(block, generation)):
                if not self._may_pass(path):
                    return False
                generation += 1
        self._held[block] = generation
        return True

    def release(self, block: int) -> None:
        """Remove all claims of a block of ours that is published.

        Raises:
            KeyError: the block is not ours.
        """
        highest = self._held.pop(block)
        with usable(self.directory):
            for generation in range(highest + 1):
                path = self.directory / claim_name(block, generation)
                self._copies.discard(path)
                path.unlink(missing_ok=True)

    def listing(self) -> tuple[int, set[int]]:
        """How many processes have a lease, dead ones included, and which blocks have a claim, expired ones included."""
        with usable(self.directory), suppress(FileNotFoundError):
            names = os.listdir(self.directory)
            claims = [claim for name in names if (claim := _CLAIM.fullmatch(name))]
            return sum(name.endswith(LEASE_SUFFIX) for name in names), {int(claim[1]) for claim in claims}
        return 0, set()

    def _create(self, path: Path) -> bool:
        """Make one claim; False if it exists."""
        with suppress(FileNotFoundError):
            return self._link(path)
        self._write_lease()  # `ScoreStore.finish` of another job has removed the directory
        return self._link(path)

    def _link(self, path: Path) -> bool:
        try:
            os.link(self.lease_path, path)
            return True
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise OSError(error.errno, error.strerror, str(path)) from error
        with suppress(FileExistsError):
            write_new(path, self.owner.to_bytes(), durable=False)
            self._copies.add(path)
            return True
        return False

    def _may_pass(self, path: Path) -> bool:
        """Whether the claim that is in our way leaves the next generation to us."""
        try:
            owner, alive = _look(path, self._renew, self._expiry_seconds)
        except FileNotFoundError:  # released just now
            return False
        return not alive or owner == self.owner  # ours: NFS has repeated a request whose answer was lost

    def _write_lease(self) -> None:
        for _ in range(3):  # another process that leaves may remove the empty directory
            self.directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                write_once(self.lease_path, self.owner.to_bytes(), durable=False)
                self._renewed_ns = os.stat(self.lease_path).st_mtime_ns
                return
        raise OSError(0, "it is removed as soon as it is made", str(self.directory))

    def _renew(self) -> int:
        """Renew our lease, and with it our claims; returns the time of the file server.

        Raises:
            FileNotFoundError: the store is finished, or somebody has removed the lease.
        """
        os.utime(self.lease_path)
        for path in tuple(self._copies):
            with suppress(FileNotFoundError):  # released by now
                os.utime(path)
        renewed_ns = os.stat(self.lease_path).st_mtime_ns
        self._was_expired |= abs(renewed_ns - self._renewed_ns) > self._expiry_seconds * 1e9
        self._renewed_ns = renewed_ns
        return renewed_ns

    def _close_socket(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def _give_up(self) -> None:
        """Leave the blocks that we hold to others."""
        self._renew()
        if self._was_expired:
            for path in (*self._copies, self.lease_path):
                os.utime(path, ns=(0, 0))
            return
        for block, generation in self._held.items():
            (self.directory / claim_name(block, generation)).unlink(missing_ok=True)

    def _keep_renewing(self) -> None:
        failing = False
        while not self._stop.wait(self._renew_seconds):
            try:
                with suppress(FileNotFoundError):  # if the store is not finished, the next claim makes it again
                    self._renew()
                failing = False
            except OSError as error:
                if not failing:
                    logger.warning("cannot renew the lease, others may take our blocks: %s", unusable_path(error))
                failing = True


def socket_address(name: str) -> str:
    """In the abstract namespace of Unix sockets, unix(7): no file, and gone with the process, however it ends."""
    return f"\0megatron-miniplm/{name}"


def _look(path: Path, now_ns: Callable[[], int], expiry_seconds: float) -> tuple[Owner | None, bool]:
    """Owner of a claim, and whether it is alive.

    The time is taken before the file is read, so that a pause of this process in between cannot make a living owner
    look expired. A time far in the future counts as expired, too: the server's clock has been set back, and living
    owners have renewed their leases since.

    Raises:
        FileNotFoundError: there is no such claim.
    """
    before_ns = now_ns()
    # Opening a file makes NFS ask the server for its time; `stat` may answer from memory. A FIFO is not waited for.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mtime_ns = os.fstat(descriptor).st_mtime_ns
        owner = Owner.from_bytes(os.read(descriptor, _MAX_RECORD_BYTES))
    finally:
        os.close(descriptor)
    expiry_ns = expiry_seconds * 1e9
    has_expired = before_ns - mtime_ns > expiry_ns
    is_ahead = mtime_ns - before_ns > expiry_ns and mtime_ns - now_ns() > expiry_ns
    return owner, not (has_expired or is_ahead or (owner is not None and owner.has_ended()))


def _slurm_job() -> str | None:
    """As `squeue` writes it: `4711`, or `4711_3` for a task of an array."""
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


@cache
def _socket_scope() -> str:
    """Boot and network namespace of this host; empty where there are none to be read."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/net")
    except OSError:
        return ""
