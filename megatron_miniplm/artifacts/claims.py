"""Who scores which block, agreed on through a shared directory: no locks, no server, any number of jobs and hosts.

    claims/<owner>.alive             a process that works; its heartbeat is the file's modification time
    claims/00000012.0                block 12 is claimed: another name (hard link) of the owner's file
    claims/00000012.1                claimed again, because the owner of generation 0 was found dead

A claim is made by `link`, which is atomic and exclusive on NFS too, and is whole once it is visible. Nobody but its
owner removes a claim while its block is unpublished, so a claim that is there has not changed hands. After every claim
the directory is listed: who finds a higher generation than its own, or a lower one of a living owner, withdraws. Of two
living processes at least one sees the other, whatever their timing, so no two of them hold one block. None of this
rests on what was known before the claim was made, which may be old, or nothing at all.

A claim costs one such listing, of two names a process, and a dozen other calls, if every process tries the blocks in an
order of its own and so rarely meets another (benchmarks/results/scale.md).

What claims cannot give is certainty about the living: a process may be declared stale and come back. Then two compute
the same block, and the exclusive publication of blocks keeps the first. Format page: docs/formats.md.

Correct scores come from publication and from the identity in every block, not from claims, which only save work. One
lease file per block with an expiry would be less code, and was considered but not measured. As things stand one touch
renews all blocks of a process, where leases would each need theirs; a lease that has run out cannot be taken over in
one atomic step without generations, so that a slow taker could remove the fresh lease of a fast one; and the record of
the owner lets a job that is restarted on its host go on at once instead of after STALE_SECONDS.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

from megatron_miniplm.artifacts.atomic import named_in_errors
from megatron_miniplm.artifacts.exclusive import NO_LINKS, write_new, write_once
from megatron_miniplm.artifacts.heartbeats import (
    ALIVE_SUFFIX,
    CLAIMS,
    STALE_SECONDS,
    Heartbeats,
    Holder,
    Snapshot,
    claim_name,
)
from megatron_miniplm.artifacts.owners import Owner
from megatron_miniplm.errors import unusable_path

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
#: Races lost in a row after which the directory is listed anew: when many start at once, all want the first block.
_MAX_LOSSES = 8
#: Heartbeats that are read on the way to a free block. Those of whom no more is read count as living, which is safe:
#: their blocks are passed over this time.
_MAX_LOOKS = 16


@dataclass(frozen=True, kw_only=True)
class Handout:
    """What `next_blocks` gave.

    Attributes:
        blocks: ours from now on, in order.
        num_held: missing blocks that were passed over because others, alive, work on them.
    """

    blocks: list[int]
    num_held: int

    @property
    def nothing_left(self) -> bool:
        """Whether no block was to be had, now or by waiting for others to publish or to die."""
        return not self.blocks and not self.num_held


@dataclass(frozen=True)
class _Held:
    """A claim of ours: its generation, those below it, and how to tell that its block is published."""

    generation: int
    lower: tuple[int, ...]
    is_done: Callable[[int], bool]


class Claims:
    """The claims of this process on the blocks of one store; use as a context manager.

    Args:
        directory: of the store; the claims lie in `claims/` below it.
        owner: a name that no other process has; by default made of host, process id, job and a random part.
        heartbeat_seconds: between two signs of life.
        stale_seconds: without a sign of life after which a process counts as dead. Where the file system stamps files
            with the clients' clocks (Lustre does), these must agree to much less than that.

    Raises:
        InputError: from every method, where the directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        owner: str | None = None,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        stale_seconds: float = STALE_SECONDS,
    ) -> None:
        self.directory = directory / CLAIMS
        self.owner = Owner.of_this_process(owner)
        self._alive_path = self.directory / f"{self.owner.name}{ALIVE_SUFFIX}"
        self._heartbeat_seconds = heartbeat_seconds
        self._heartbeats = Heartbeats(self.directory, stale_seconds, own=self.owner.name)
        self._held: dict[int, _Held] = {}
        self._met_others = False  # in the last call
        self._num_owners = 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        with self._usable():
            self._announce()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        for block in list(self._held):
            with suppress(Exception):  # without our heartbeat it is stale anyway
                self.release(block)
        with suppress(OSError):
            self._alive_path.unlink()
        with suppress(OSError):  # others are still there, or `ScoreStore.finish` was
            self.directory.rmdir()

    @property
    def num_owners(self) -> int:
        """How many processes were at work when the directory was last listed, dead ones that left a name included."""
        return self._num_owners

    def claim(self, block: int, *, is_done: Callable[[int], bool]) -> bool:
        """Claim one block; False where another has it or it is done. See `next_blocks`."""
        return bool(self.next_blocks([block], 1, is_done=is_done).blocks)

    def next_blocks(self, missing: Iterable[int], want: int, *, is_done: Callable[[int], bool]) -> Handout:
        """Claim the first blocks that nobody alive works on.

        One listing after, and one before where others were met; what they hold costs no call of the file system each.

        Args:
            missing: blocks to be done, in order, read as far as is needed; those that are ours already are passed over.
            is_done: whether a block is published, `ScoreStore.has_block`. Asked before a block is claimed, because the
                list of missing ones may be old, and again after, because it may have been published in between.
        """
        with self._usable():
            return self._next_blocks(iter(missing), want, is_done)

    def release(self, block: int) -> None:
        """End our claim of a block: it is published, or to be done by another.

        Raises:
            KeyError: it is not ours.
        """
        held = self._held.pop(block)
        with self._usable():
            # The claims below ours are of the dead. While the block is missing they stay, because whoever comes back
            # from the dead removes its own claims by name, and a name must not belong to another by then.
            if held.is_done(block):
                for generation in held.lower:
                    self._claim_path(block, generation).unlink(missing_ok=True)
            self._claim_path(block, held.generation).unlink(missing_ok=True)

    def in_flight(self) -> list[Holder]:
        """Who works on what, by block."""
        with self._usable():
            return self._snapshot().holders()

    def holders(self, blocks: Sequence[int]) -> dict[int, Holder]:
        """Who works on these blocks; without those that nobody has claimed."""
        wanted = set(blocks)
        return {holder.block: holder for holder in self.in_flight() if holder.block in wanted}

    def _next_blocks(self, missing: Iterator[int], want: int, is_done: Callable[[int], bool]) -> Handout:
        won: list[int] = []
        num_held = 0
        snapshot = None
        if self._met_others:
            snapshot = self._snapshot()
        else:  # generation 0 is tried without knowing: where few others are met, that saves every second listing
            self._beat()
        while len(won) < want:
            tried, lost, num_passed = self._try(snapshot, missing, want - len(won), is_done)
            num_held += num_passed
            if not tried and not lost:
                break
            knew, snapshot = snapshot is not None, self._snapshot()
            for block, generation in tried.items():
                if not self._stands(snapshot, block, generation):
                    self._claim_path(block, generation).unlink(missing_ok=True)
                    lost.append(block)
                    continue
                self._held[block] = _Held(generation, snapshot.generations_below(block, generation), is_done)
                if is_done(block):
                    self.release(block)
                else:
                    won.append(block)
            if knew:
                num_held += len(lost)
            else:  # those who were first may be dead, which only this listing tells
                missing = chain(lost, missing)
        self._met_others = num_held > 0
        return Handout(blocks=won, num_held=num_held)

    def _try(
        self, snapshot: Snapshot | None, missing: Iterator[int], want: int, is_done: Callable[[int], bool]
    ) -> tuple[dict[int, int], list[int], int]:
        """Make claims, still to be checked: their generations by block, blocks lost, how many were passed over."""
        tried: dict[int, int] = {}
        lost: list[int] = []
        num_held = 0
        max_losses = _MAX_LOSSES if snapshot else 1
        while len(tried) < want and len(lost) < max_losses and (block := next(missing, None)) is not None:
            if block in self._held:
                continue
            highest = snapshot.highest(block) if snapshot else None
            if snapshot and highest is not None and snapshot.is_alive(block, highest, max_looks=_MAX_LOOKS):
                num_held += 1
            elif not is_done(block):
                generation = 0 if highest is None else highest + 1
                if self._create(block, generation):
                    tried[block] = generation
                else:
                    lost.append(block)
        return tried, lost, num_held

    def _stands(self, snapshot: Snapshot, block: int, generation: int) -> bool:
        """Whether the claim that we have just made is the highest, above none of a living owner."""
        return snapshot.highest(block) == generation and not any(
            snapshot.is_alive(block, lower) for lower in snapshot.generations_below(block, generation)
        )

    def _create(self, block: int, generation: int) -> bool:
        """Make one claim, if nobody has."""
        path = self._claim_path(block, generation)
        try:
            with named_in_errors(path):
                os.link(self._alive_path, path)
            return True
        except FileExistsError:
            with suppress(FileNotFoundError):
                # A client of NFS repeats a request whose answer was lost, and then meets its own link.
                return os.path.samefile(self._alive_path, path)
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise OSError(error.errno, error.strerror, str(path)) from error
        try:
            write_new(path, self.owner.to_bytes(), durable=False)
            return True
        except FileExistsError:
            return False

    def _snapshot(self) -> Snapshot:
        snapshot = self._heartbeats.snapshot(self._beat())
        self._num_owners = snapshot.num_owners
        return snapshot

    def _announce(self) -> None:
        """Make our heartbeat file."""
        for _ in range(3):  # another that leaves may remove the empty directory under us
            self.directory.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                write_once(self._alive_path, self.owner.to_bytes(), durable=False)
                return
        raise OSError(0, "it vanishes as soon as it is made", str(self.directory))

    def _beat(self) -> int:
        """Show that we live; returns the time, nanoseconds by the clock of the file server."""
        try:
            os.utime(self._alive_path)  # without a time: the server's, where it has one
        except FileNotFoundError:  # `ScoreStore.finish` of another job removed it, or a person
            self._announce()
        return os.stat(self._alive_path).st_mtime_ns

    def _keep_beating(self) -> None:
        failing = False
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                os.utime(self._alive_path)
                failing = False
            except FileNotFoundError:
                pass  # the store is finished; if it is not, the next claim makes it again
            except OSError as error:
                if not failing:
                    logger.warning("no heartbeat, others may take over our blocks: %s", unusable_path(error))
                failing = True

    def _claim_path(self, block: int, generation: int) -> Path:
        return self.directory / claim_name(block, generation)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            with named_in_errors(self.directory):
                yield
        except OSError as error:
            raise unusable_path(error) from error
