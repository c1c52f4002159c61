"""Writes that are all or nothing: beside the target, fsync, rename, fsync of the directory."""

import errno
import io
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from megatron_miniplm.errors import unusable_path

TEMPORARY_SUFFIX = ".tmp"


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Give what the operating system refuses in the block, such as a write to a full disk, the name of the file."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses in the block into an `InputError` that names the file, or else `path`."""
    try:
        with named_in_errors(path):
            yield
    except OSError as error:
        raise unusable_path(error) from error


def temporary_beside(path: Path) -> Path:
    """A hidden name beside `path` that nobody else has, not a process id: hosts and containers share those."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}")


@contextmanager
def atomic_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears under `path` only when the block ends without an error.

    Every writer has a temporary file of its own; the last rename wins, whole. On an error the temporary file is removed
    and `path` keeps what it had.

    Yields:
        A binary file, open for writing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as stream:  # created, or nothing: a link under this name is not followed
            yield stream
            with named_in_errors(path):
                stream.flush()
                os.fsync(stream.fileno())
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Rename a finished, synced file into place and make the rename itself durable."""
    os.replace(temporary, path)
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make what was renamed or linked in a directory durable.

    Where this fails the new name is there all the same: what it stands for must already be whole.
    """
    with named_in_errors(directory):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def create_over(path: Path) -> IO[bytes]:
    """Open a file for writing under a name that others can guess.

    What is there is removed and not opened: a symbolic or hard link that somebody has put there would lead the bytes
    into another file, and a file that somebody else owns would let them change the bytes.

    Raises:
        FileExistsError: somebody else has made one in between.
    """
    path.unlink(missing_ok=True)
    return cast(IO[bytes], path.open("xb"))


def write_text(path: Path, text: str) -> None:
    with atomic_output(path) as stream:
        stream.write(text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON with keys in insertion order and a final newline: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_array(path: Path, array: np.ndarray) -> None:
    """Write one `.npy` (format 1.0, C order, no pickles)."""
    with atomic_output(path) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


@contextmanager
def array_output(path: Path, dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
    """Write one `.npy` of one dimension piece by piece, with the bytes that `write_array` would write.

    Yields:
        A function that appends an array.
    """
    num_written = 0
    with atomic_output(path) as stream:
        stream.write(array_header(0, dtype))

        def append(array: np.ndarray) -> None:
            nonlocal num_written
            stream.write(np.ascontiguousarray(array, dtype).data)
            num_written += len(array)

        yield append
        stream.seek(0)
        stream.write(array_header(num_written, dtype))  # NumPy leaves room for any length


def array_header(num_values: int, dtype: np.dtype) -> bytes:
    """The header of a `.npy` of one dimension, format 1.0."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": (num_values,)})
    return header.getvalue()


#: What file systems without hard links answer to `link`: FAT, some FUSE and SMB mounts. EMLINK: the file has too many.
NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


def write_once(path: Path, data: bytes, *, durable: bool = True) -> bool:
    """Publish a file under a name that may be taken.

    Args:
        durable: sync the file and its directory, so that a published file survives a power failure.

    Returns:
        Whether the file was published; False where `path` exists, which stays as it is.

    Raises:
        OSError: names `path`; nothing was left behind.
    """
    temporary = temporary_beside(path)
    try:
        write_new(temporary, data, durable=durable)
        published = link_once(temporary, path)
        if published and durable:
            sync_directory(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return published


def write_new(path: Path, data: bytes, *, durable: bool) -> None:
    """Create a file that must not exist; visible from its first byte on.

    Raises:
        FileExistsError: it exists.
        OSError: it cannot be written; it was removed again.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    finally:
        os.close(descriptor)


def link_once(source: Path, path: Path) -> bool:
    """Give a finished file a second name, if nobody has it: `link` is atomic and exclusive on NFS too.

    Without hard links the file is renamed if the name looks free: of two writers in the same instant both may then
    believe that they won, and the last one's bytes stay.
    """
    try:
        os.link(source, path)
        return True
    except FileExistsError:
        # A client of NFS repeats a request whose answer was lost, and then meets its own link.
        return source.exists() and os.path.samefile(source, path)
    except FileNotFoundError:
        if path.exists():  # whoever saw the name published swept our temporary file away
            return False
        raise
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
    if path.exists():
        return False
    os.rename(source, path)
    return True
