"""One process at a time writes a directory or a file, from its first byte to its last.

The lock is a hidden file in the directory, or beside the file, that is there while somebody writes. The kernel frees it
when the process dies, so a file that a kill has left does not count. Where a file system has no locks, nothing is
refused.
"""

import errno
import fcntl
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, publish, temporary_beside, write_json
from megatron_miniplm.errors import InputError

LOCK = ".miniplm.lock"
_ATTEMPTS = 10
#: Another user's file or directory, a file system that is mounted read-only, a link in place of the lock.
_NOT_ALLOWED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP})
#: What renaming a directory answers where the name is taken.
_TAKEN = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})
_TEMPORARY = re.compile(rf"\.(?P<name>.+)\.[0-9a-f]{{16}}{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL)


@contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Make the directory and hold its lock; what killed writers have left is removed, and so is an empty directory.

    Raises:
        InputError: another process is writing it, it is no directory, or it cannot be locked.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give another --output")
    try:
        with _locked(directory / LOCK, directory, f".*{TEMPORARY_SUFFIX}"):
            yield
    finally:
        with suppress(OSError):
            directory.rmdir()


def remove_dead_writer(directory: Path) -> None:
    """Remove the lock and the temporary files of a `sole_writer` that was killed; nothing while another one writes.

    For directories that are finished, where nobody becomes the next `sole_writer`.
    """
    if (directory / LOCK).exists():
        with suppress(InputError, OSError), sole_writer(directory):
            pass


@contextmanager
def sole_writer_of_file(path: Path) -> Iterator[None]:
    """Hold the right to write one file, as `sole_writer` does for a directory; its directory is made.

    Raises:
        InputError: another process is writing it, or it cannot be locked.
    """
    with _locked(lock_of_file(path), path, f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}"):
        yield


def lock_of_file(path: Path) -> Path:
    """The lock of a file, or of the files of a prefix."""
    return path.with_name(f".{path.name}.lock")


def write_result(path: Path, value: Any) -> None:
    """`write_json` by one writer at a time, who removes what killed writers of this file have left."""
    with sole_writer_of_file(path):
        write_json(path, value)


@contextmanager
def unusable_locks_named(lock: Path) -> Iterator[None]:
    """Say what to do where the operating system does not let us open a lock.

    Raises:
        InputError: in place of an OSError that says so.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_ALLOWED:
            raise
        raise InputError(f"{lock} cannot be opened for writing: {error.strerror}: {_remedy(lock)}") from None


def _remedy(lock: Path) -> str:
    if os.path.lexists(lock):
        return (
            f"it is the lock of a writer (owner: user {lock.lstat().st_uid}): wait until it is gone, delete it if "
            "nobody writes there any more, or choose another output"
        )
    return f"make {lock.parent} writable for this user, or choose another output"


@contextmanager
def _locked(lock: Path, what: Path, temporaries: str) -> Iterator[None]:
    """Hold a lock beside or in what is written; files that match a pattern and that killed writers left are removed."""
    with hold_lock(lock, what) as is_locked:
        if is_locked:
            _sweep(lock.parent, temporaries, own=what.name)
        yield


@contextmanager
def hold_lock(lock: Path, what: Path) -> Iterator[bool]:
    """Hold a file that exists while `what` is written; its directory is made.

    Yields:
        Whether it is locked: where a file system has no locks, nothing is refused.

    Raises:
        InputError: another process holds it, or it cannot be opened.
    """
    with unusable_locks_named(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        descriptor, is_locked = _lock(lock, what)
    try:
        yield is_locked
    finally:
        with suppress(OSError):
            lock.unlink()  # before the lock is freed, so that whoever locks the old file finds out
        os.close(descriptor)


def _sweep(directory: Path, pattern: str, own: str) -> None:
    """Remove temporary files of `artifacts.atomic`, but for those of files that somebody else may be writing."""
    for stale in directory.glob(pattern):
        found = _TEMPORARY.fullmatch(stale.name)
        if found and (found["name"] == own or not lock_of_file(directory / found["name"]).exists()):
            stale.unlink(missing_ok=True)


def _lock(path: Path, what: Path) -> tuple[int, bool]:
    """An open file that still has its name, and whether it is locked: some file systems have no locks."""
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            break
        except OSError:
            return descriptor, False
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, True
        os.close(descriptor)  # the file of a writer that ended just now
    raise InputError(f"{what} is being written by another process: wait for it, or stop it")


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
    _remove_dead_writers(path)
    temporary, descriptor = _make_locked(path)
    try:
        yield temporary
        os.fsync(descriptor)
        if path.exists():
            raise _made_meanwhile(path)
        try:
            publish(temporary, path)
        except OSError as error:
            if error.errno in _TAKEN:
                raise _made_meanwhile(path) from None
            raise
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _made_meanwhile(path: Path) -> InputError:
    return InputError(f"{path} was made by another process meanwhile: give another directory, or delete it")


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


def _remove_dead_writers(path: Path) -> None:
    """Remove the hidden directories of writers of `path` that are dead."""
    for stale in list(path.parent.glob(f".{glob.escape(path.name)}.*{TEMPORARY_SUFFIX}")):
        found = _TEMPORARY.fullmatch(stale.name)
        if not found or found["name"] != path.name:
            continue
        with suppress(OSError):  # no directory, not ours, gone, or locked by the living
            descriptor = _open_directory(stale)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(stale)
            finally:
                os.close(descriptor)


@contextmanager
def temporaries_kept(directory: Path) -> Iterator[None]:
    """Keep `remove_dead_temporaries` away from the temporary files that are written in the block.

    Any number of processes may be in such a block. They wait while files are being removed. Where a file system has no
    locks of directories, nothing is held.
    """
    descriptor = _open_directory(directory)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def remove_dead_temporaries(directory: Path) -> None:
    """Remove the temporary files of killed processes from a directory all of whose writers use `temporaries_kept`.

    While another process writes there, or where a file system has no locks of directories, nothing is removed.
    """
    descriptor = _open_directory(directory)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for stale in directory.glob(f".*{TEMPORARY_SUFFIX}"):
                if _TEMPORARY.fullmatch(stale.name):
                    stale.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _open_directory(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
