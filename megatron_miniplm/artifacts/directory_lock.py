"""One process at a time writes a directory, from its first byte to its manifest.

The lock is a file in the directory that is there while somebody writes. The kernel frees it when the process dies, so a
file that a kill has left does not count. Where a file system has no locks, nothing is refused.
"""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX
from megatron_miniplm.errors import InputError

LOCK = ".miniplm.lock"
_ATTEMPTS = 10
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Make the directory and hold its lock; what killed writers have left is removed, and so is an empty directory.

    Raises:
        InputError: another process is writing it, or it is no directory.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give another --output")
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / LOCK
    descriptor, is_locked = _lock(path)
    try:
        if is_locked:
            _sweep(directory)
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # before the lock is freed, so that whoever locks the old file finds out
        os.close(descriptor)
        with suppress(OSError):
            directory.rmdir()


def _sweep(directory: Path) -> None:
    """Remove temporary files of `artifacts.atomic`; only called while nobody else writes."""
    for stale in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        if _TEMPORARY.fullmatch(stale.name):
            stale.unlink(missing_ok=True)


def _lock(path: Path) -> tuple[int, bool]:
    """An open file that still has its name, and whether it is locked: some file systems have no locks."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            break
        except OSError:
            return descriptor, False
        with suppress(FileNotFoundError):
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return descriptor, True
        os.close(descriptor)  # the file of a writer that ended just now
    raise InputError(f"{path.parent} is being written by another process: wait for it, or stop it")
