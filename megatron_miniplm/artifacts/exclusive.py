"""Files that appear whole and once: of several writers of one name, the first wins and the others are told so.

`artifacts.atomic` lets the last writer win, which is right for a file that one process may write again. Here many
processes on many hosts write, and what is visible must never change under those who have read it.
"""

import errno
import os
from contextlib import suppress
from pathlib import Path

from megatron_miniplm.artifacts.atomic import sync_directory, temporary_beside

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
