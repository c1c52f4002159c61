"""One writer of a prefix or a directory at a time, from the first look at what is there to the manifest.

The lock is a hidden file that exists while somebody writes. Its holder removes it; one that was killed leaves it, so a
lock file that nobody holds says that what lies there may be half of something.
"""

import fcntl
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX
from megatron_miniplm.artifacts.data_args import DATA_ARGS
from megatron_miniplm.artifacts.manifest import DIRECTORY_MANIFEST
from megatron_miniplm.errors import InputError

DIRECTORY_LOCK = ".miniplm.lock"
_held: set[Path] = set()  # by this process, which may ask again for what it has


@contextmanager
def prefix_lock(prefix: Path) -> Iterator[None]:
    """Hold the right to write a prefix.

    Raises:
        InputError: another process holds it.
    """
    with _locked(_prefix_lock_path(prefix), prefix):
        yield


def is_locked_or_left(prefix: Path) -> bool:
    """Whether somebody writes a prefix, or was killed while writing it."""
    return _prefix_lock_path(prefix).exists()


@contextmanager
def directory_lock(directory: Path) -> Iterator[bool]:
    """Hold the right to write a directory, which is made if need be, and removed again if nothing was put into it.

    Yields:
        Whether a process that held it was killed.

    Raises:
        InputError: another process holds it.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(directory / DIRECTORY_LOCK, directory) as was_killed:
            if was_killed:
                for name in (DATA_ARGS, DIRECTORY_MANIFEST):
                    remove_temporaries(directory, name)
            yield was_killed
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                directory.rmdir()


def remove_temporaries(directory: Path, name: str = "*") -> None:
    """Remove what killed writers of a file left beside it; of all files of a directory by default."""
    pattern = name if name == "*" else glob.escape(name)
    for stale in directory.glob(f".{pattern}.*{TEMPORARY_SUFFIX}"):
        stale.unlink(missing_ok=True)


def _prefix_lock_path(prefix: Path) -> Path:
    return prefix.with_name(f".{prefix.name}.lock")


@contextmanager
def _locked(path: Path, what: Path) -> Iterator[bool]:
    path = path.absolute()
    if path in _held:
        yield False
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    was_there = path.exists()
    descriptor = _acquire(path, what)
    _held.add(path)
    try:
        yield was_there
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # before it is released: whoever waits for it looks whether it is still there
        os.close(descriptor)


def _acquire(path: Path, what: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            raise InputError(f"{what} is being written by another process: wait for it, or stop it") from None
        except FileNotFoundError:
            pass  # its holder removed it just now
        except OSError:
            return descriptor  # a file system without locks
        os.close(descriptor)
