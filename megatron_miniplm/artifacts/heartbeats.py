"""Who has claimed what, and who of them lives: one look at the directory of claims that `artifacts.claims` explains."""

import os
import re
import secrets
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX
from megatron_miniplm.artifacts.exclusive import write_new
from megatron_miniplm.artifacts.owners import Owner

CLAIMS = "claims"
ALIVE_SUFFIX = ".alive"
STALE_SECONDS = 60.0
#: For this part of the time after which it is stale, a heartbeat that was read is not read again while it still says
#: that its owner lives. Death may be noticed late without harm, and is never told from memory.
TRUST_FRACTION = 0.25
_CLAIM = re.compile(r"(\d{8,})\.(\d+)")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The highest claim of a block.

    Attributes:
        owner: None where its record cannot be read.
        alive: False where the block may be claimed by the next.
    """

    block: int
    generation: int
    owner: Owner | None
    alive: bool


def claim_name(block: int, generation: int) -> str:
    return f"{block:08d}.{generation}"


def in_flight(directory: Path, *, stale_seconds: float = STALE_SECONDS) -> list[Holder]:
    """Who works on what in a store, by block, seen from a process that claims nothing."""
    claims = directory / CLAIMS
    if not claims.is_dir():
        return []
    return Heartbeats(claims, stale_seconds).snapshot(server_time_ns(claims)).holders()


def server_time_ns(directory: Path) -> int:
    """What a file that is made now would be stamped with; the local clock where none can be made."""
    path = directory / f".clock.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
    try:
        write_new(path, b"", durable=False)
        try:
            return path.stat().st_mtime_ns
        finally:
            path.unlink(missing_ok=True)
    except OSError:
        return time.time_ns()


@dataclass
class _Watched:
    """A heartbeat as this process sees it, by its own monotonic clock.

    Attributes:
        since: when `mtime_ns` was first seen.
        last_look: when it was last seen.
        beats: it was seen to change between two looks of which the second came soon.
    """

    mtime_ns: int
    since: float
    last_look: float
    beats: bool


class Heartbeats:
    """Tells living owners from dead ones.

    A heartbeat is compared with the time of the same server, so that clocks of clients do not matter where the server
    stamps files. Where clients do, two more rules stand against clocks that disagree: a heartbeat that does not change
    while we watch is dead, however far in the future it lies, and one that changes is alive, however old it looks.

    Args:
        directory: of the claims.
        own: name of the owner that looks; to itself it is no other that lives.
    """

    def __init__(self, directory: Path, stale_seconds: float, *, own: str | None = None) -> None:
        self.directory = directory
        self.own = own
        self._stale_seconds = stale_seconds
        self._owners: dict[str, Owner] = {}
        self._watched: dict[str, _Watched] = {}

    def snapshot(self, now_ns: int) -> "Snapshot":
        return Snapshot(self, now_ns)

    def beats(self, name: str, now_ns: int) -> bool:
        """Whether an owner lives; reads its heartbeat."""
        try:
            mtime_ns = os.stat(self.directory / f"{name}{ALIVE_SUFFIX}").st_mtime_ns
        except FileNotFoundError:
            return False
        owner = self.record(name)
        if owner is not None and owner.has_died():
            return False
        return self._shows_life(self._watch(name, mtime_ns), now_ns)

    def beat_lately(self, name: str, now_ns: int) -> bool:
        """Whether an owner lives by what was read a short while ago; calls nothing of the file system."""
        watched = self._watched.get(name)
        if watched is None or time.monotonic() - watched.last_look > self._stale_seconds * TRUST_FRACTION:
            return False
        owner = self._owners.get(name)
        return not (owner is not None and owner.has_died()) and self._shows_life(watched, now_ns)

    def _shows_life(self, watched: _Watched, now_ns: int) -> bool:
        if watched.last_look - watched.since > self._stale_seconds:
            return False
        return watched.beats or self.is_recent(watched.mtime_ns, now_ns)

    def is_recent(self, mtime_ns: int, now_ns: int) -> bool:
        return now_ns - mtime_ns <= self._stale_seconds * 1e9

    def record(self, name: str) -> Owner | None:
        """An owner's record; it never changes."""
        if name not in self._owners:
            with suppress(FileNotFoundError):
                owner = Owner.read(self.directory / f"{name}{ALIVE_SUFFIX}")
                if owner is not None:
                    self._owners[name] = owner
        return self._owners.get(name)

    def _watch(self, name: str, mtime_ns: int) -> _Watched:
        clock = time.monotonic()
        before = self._watched.get(name)
        if before is not None and before.mtime_ns == mtime_ns:
            before.last_look = clock
            return before
        beats = before is not None and mtime_ns > before.mtime_ns and clock - before.last_look <= self._stale_seconds
        self._watched[name] = _Watched(mtime_ns, clock, clock, beats)
        return self._watched[name]


class Snapshot:
    """One listing of the directory, in which an owner is judged once.

    Every claim is a hard link to its owner's heartbeat file, so that the inodes in the listing tell whose it is: no
    claim is opened, however many there are. Where inodes do not tell (no hard links, an owner that has left), it is.

    Attributes:
        num_owners: processes with a heartbeat, dead ones included.
    """

    def __init__(self, heartbeats: Heartbeats, now_ns: int) -> None:
        self._heartbeats = heartbeats
        self._now_ns = now_ns
        self._inodes: dict[int, dict[int, int]] = defaultdict(dict)
        self._names: dict[int, str] = {}
        self._verdicts: dict[str, bool] = {}
        self._num_looks = 0
        with suppress(FileNotFoundError), os.scandir(heartbeats.directory) as entries:
            for entry in entries:
                if claim := _CLAIM.fullmatch(entry.name):
                    self._inodes[int(claim[1])][int(claim[2])] = entry.inode()
                elif entry.name.endswith(ALIVE_SUFFIX):
                    self._names[entry.inode()] = entry.name.removesuffix(ALIVE_SUFFIX)
        self.num_owners = len(self._names)

    def highest(self, block: int) -> int | None:
        """The highest generation of a block's claims; None without one."""
        return max(self._inodes[block]) if block in self._inodes else None

    def generations_below(self, block: int, generation: int) -> tuple[int, ...]:
        return tuple(sorted(other for other in self._inodes.get(block, ()) if other < generation))

    def is_alive(self, block: int, generation: int, *, max_looks: int | None = None) -> bool:
        """Whether the owner of a claim lives and is another; a claim that is gone by now has none.

        Args:
            max_looks: files of others that are read in all; True is answered for whom that does not suffice.
        """
        name = self._names.get(self._inodes[block][generation])
        if name is not None:
            if name == self._heartbeats.own:
                return False
            if name not in self._verdicts and self._heartbeats.beat_lately(name, self._now_ns):
                self._verdicts[name] = True
            if name in self._verdicts:
                return self._verdicts[name]
        if max_looks is not None and self._num_looks >= max_looks:
            return True
        self._num_looks += 1
        if name is None:
            path = self._heartbeats.directory / claim_name(block, generation)
            try:
                owner = Owner.read(path)
                if owner is None:  # without hard links a claim is visible before it is whole
                    return self._heartbeats.is_recent(path.stat().st_mtime_ns, self._now_ns)
            except FileNotFoundError:
                return False
            name = owner.name
        if name == self._heartbeats.own:
            return False
        if name not in self._verdicts:
            self._verdicts[name] = self._heartbeats.beats(name, self._now_ns)
        return self._verdicts[name]

    def holders(self) -> list[Holder]:
        """The highest claim of every block, by block."""
        holders = []
        for block in sorted(self._inodes):
            generation = max(self._inodes[block])
            owner = self._owner(block, generation)
            ours = owner is not None and owner.name == self._heartbeats.own
            alive = ours or self.is_alive(block, generation)
            holders.append(Holder(block=block, generation=generation, owner=owner, alive=alive))
        return holders

    def _owner(self, block: int, generation: int) -> Owner | None:
        name = self._names.get(self._inodes[block][generation])
        if name is not None:
            return self._heartbeats.record(name)
        with suppress(FileNotFoundError):
            return Owner.read(self._heartbeats.directory / claim_name(block, generation))
        return None
