"""Directories that appear under their name only when they are whole, and leave nothing behind when they fail."""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, publish, temporary_beside
from megatron_miniplm.artifacts.directory_lock import unusable_locks_named
from megatron_miniplm.errors import InputError

_ATTEMPTS = 10


@contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Make a hidden directory beside `path` that gets its name when the block ends without an error.

    On an error it is removed. One that a killed process has left is removed by the next writer of the same `path`:
    a living writer holds a lock on its directory. Where a file system has no such locks, nothing is removed.

    Yields:
        The hidden directory; the files in it must be synced by who writes them.

    Raises:
        InputError: somebody else made `path` meanwhile.
    """
    _sweep(path)
    temporary, descriptor = _make_locked(path)
    try:
        yield temporary
        os.fsync(descriptor)
        if path.exists():
            raise InputError(f"{path} was made by another process meanwhile: give another directory, or delete it")
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _make_locked(path: Path) -> tuple[Path, int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(_ATTEMPTS):
        temporary = temporary_beside(path)
        with unusable_locks_named(temporary):
            temporary.mkdir()
        try:
            descriptor = _open_directory(temporary)
        except FileNotFoundError:
            continue  # swept between the two calls
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)  # about to be swept
        except OSError:
            return temporary, descriptor  # no locks here
        else:
            if temporary.is_dir():
                return temporary, descriptor
            os.close(descriptor)
    raise InputError(f"{path} is being written by other processes: wait for them, or give another directory")


def _sweep(path: Path) -> None:
    """Remove the hidden directories of writers of `path` that are dead."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}")
    if not path.parent.is_dir():
        return
    for stale in [stale for stale in path.parent.iterdir() if pattern.fullmatch(stale.name)]:
        with suppress(OSError):  # no directory, not ours, gone, or locked by the living
            descriptor = _open_directory(stale)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale)
            finally:
                os.close(descriptor)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
