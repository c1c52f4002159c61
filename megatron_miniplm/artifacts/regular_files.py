"""Regular files only: what an artifact names may be a FIFO, a device or a path that leads elsewhere.

An artifact can come from somebody else. Opening a FIFO waits for a writer, reading `/dev/zero` never ends, and opening
some devices acts on them. Whoever opens a file because an artifact says so opens it here.
"""

import os
import stat
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from megatron_miniplm.errors import CorruptArtifactError, InputError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or a symbolic link to one, for reading; never waits for a writer.

    Raises:
        OSError: it does not exist or cannot be opened.
        InputError: it is something else, or its name cannot be a path.
    """
    try:
        # Look first: opening some devices acts on them. Look again at what was opened, which may be another file.
        _require_regular(path, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError as error:  # a NUL, or a character that no file name can hold
        raise InputError(f"{str(path)!r} cannot be a path ({error}): give the path of a file") from None
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
        os.set_blocking(descriptor, True)
        return cast(BinaryIO, os.fdopen(descriptor, "rb"))
    except BaseException:
        os.close(descriptor)
        raise


def require_at_most(path: Path, max_bytes: int) -> None:
    """Raise InputError unless a path is a regular file of at most so many bytes, OSError if there is none."""
    with open_regular(path) as stream:
        size_bytes = stream.seek(0, 2)
    if size_bytes > max_bytes:
        raise InputError(
            f"{path} has {size_bytes:,} bytes, expected at most {max_bytes:,}: check that it is the right file"
        )


def path_below(directory: Path, name: object, *, named_by: Path) -> Path:
    """The path of a file that an artifact says is its own.

    Args:
        directory: of the artifact.
        name: relative to it, as found in the artifact.
        named_by: the file in which the name was found.

    Raises:
        CorruptArtifactError: not a relative path that stays below the directory.
    """
    relative = PurePosixPath(name) if isinstance(name, str) else PurePosixPath()
    if relative.is_absolute() or ".." in relative.parts or relative == PurePosixPath() or "\0" in str(relative):
        raise CorruptArtifactError(
            f"{named_by} names the file {str(name)[:200]!r}, expected a path below {directory}: make the artifact again"
        )
    return directory / relative


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise InputError(f"{path} is {kind}, expected a regular file: give the path of a file, or replace it by one")
