"""One writer of a prefix at a time, from the first look at what is there to the manifest.

The lock is a hidden file beside the prefix that exists while somebody writes; `artifacts.directory_lock` does the same
for directories. A process may ask again for a lock that it holds.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_miniplm.artifacts.directory_lock import unusable_locks_named
from megatron_miniplm.errors import InputError

_held: set[Path] = set()  # by this process


@contextmanager
def prefix_lock(prefix: Path) -> Iterator[None]:
    """Hold the right to write a prefix.

    Raises:
        InputError: another process holds it, or the lock cannot be opened.
    """
    with _locked(_prefix_lock_path(prefix), prefix):
        yield


def is_locked_or_left(prefix: Path) -> bool:
    """Whether somebody writes a prefix, or was killed while writing it."""
    return _prefix_lock_path(prefix).exists()


def _prefix_lock_path(prefix: Path) -> Path:
    return prefix.with_name(f".{prefix.name}.lock")


@contextmanager
def _locked(path: Path, what: Path) -> Iterator[None]:
    path = path.absolute()
    if path in _held:
        yield
        return
    with unusable_locks_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(path, what)
    _held.add(path)
    try:
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)  # before it is released: whoever waits for it looks whether it is still there
        os.close(descriptor)


def _acquire(path: Path, what: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
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
