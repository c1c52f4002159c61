"""A forked process to which something happens at its n-th `fsync`: every file is synced before it is renamed."""

import errno
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from megatron_miniplm.errors import MiniPLMError

#: Tries per test of faults and races: a few in the suite, `MINIPLM_TRIES=200 pytest ...` on demand.
TRIES_VARIABLE = "MINIPLM_TRIES"
DONE, REFUSED, FULL, KILLED = "done", "refused", "disk full", "killed"


def num_tries(default: int) -> int:
    return int(os.environ.get(TRIES_VARIABLE, default))


class Forked:
    """The body runs from the start; `outcome` waits for its end.

    Args:
        body: what is run.
        at: number of the `fsync`, from 0, at which `action` happens; None for never.
        action: `kill` (SIGKILL), `full` (ENOSPC), or `pause` (until `resume`).
    """

    def __init__(self, body: Callable[[], object], *, at: int | None = None, action: str = "pause") -> None:
        fork = multiprocessing.get_context("fork")
        self._ours, theirs = fork.Pipe()
        self._process = fork.Process(target=_run, args=(body, at, action, theirs))
        self._process.start()
        theirs.close()
        self._last: Any = None

    def is_paused(self) -> bool:
        """Wait until it is paused, or over."""
        return self._next() == "paused"

    def resume(self) -> None:
        self._ours.send(None)

    def outcome(self) -> str:
        """One of DONE, REFUSED, FULL and KILLED."""
        while (found := self._next()) == "paused":
            self.resume()
        self._process.join()
        return str(found)

    def _next(self) -> str:
        if self._last is None or self._last == "paused":
            try:
                self._last = self._ours.recv()
            except EOFError:
                self._last = KILLED
        return str(self._last)


def _run(body: Callable[[], object], at: int | None, action: str, pipe: Connection) -> None:
    sync, count = os.fsync, 0

    def fsync(descriptor: Any) -> None:
        nonlocal count
        count += 1
        if at is not None and count == at + 1:
            if action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if action == "full":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            pipe.send("paused")
            pipe.recv()
        sync(descriptor)

    os.fsync = fsync
    try:
        body()
        outcome = DONE
    except MiniPLMError:
        outcome = REFUSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        outcome = FULL
    pipe.send(outcome)
    os._exit(0)
