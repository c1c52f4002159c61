"""Regular files only: what an artifact names may be a FIFO, a device or a path that leads elsewhere.

An artifact can come from somebody else. Opening a FIFO waits for a writer, reading `/dev/zero` never ends, and opening
some devices acts on them. Whoever opens a file because an artifact says so opens it here.
"""

import json
import math
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NoReturn, cast

import numpy as np

from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError

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


#: Parsed JSON takes up to some twenty times its size in memory.
MAX_BYTES = 64 << 20
MAX_DEPTH = 64
#: The largest integer that NumPy holds, in an unsigned array.
MAX_INTEGER = (1 << 64) - 1
_MAKE_AGAIN = "make it again"
_NAMES = {dict: "an object", list: "an array", str: "a string", int: "an integer", float: "a number", bool: "a boolean"}


def read_json(
    path: Path, *, what: str, expected: type = dict, max_bytes: int = MAX_BYTES, remedy: str = _MAKE_AGAIN
) -> Any:
    """Read one JSON file.

    Args:
        what: the file holds, for the error: `manifest`.
        expected: type of the outermost value.
        remedy: for the error: what to do about a damaged file.

    Raises:
        CorruptArtifactError: for anything wrong, a missing file included; see `parse_json`.
    """
    try:
        with open_regular(path) as stream:
            if stream.seek(0, 2) > max_bytes:
                raise CorruptArtifactError(
                    f"{path} is larger than {max_bytes:,} bytes, too large for a {what}: {remedy}"
                )
            stream.seek(0)
            data = stream.read(max_bytes)
    except CorruptArtifactError:
        raise
    except (OSError, MiniPLMError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        if isinstance(error, PermissionError):
            remedy = "ask its owner for permission to read it"
        raise CorruptArtifactError(f"{path} cannot be read as the {what} ({reason}): {remedy}") from None
    return parse_json(data, where=path, what=what, expected=expected, remedy=remedy)


def parse_json(data: bytes, *, where: object, what: str, expected: type = dict, remedy: str = _MAKE_AGAIN) -> Any:
    """Parse JSON in UTF-8.

    Beside what is no JSON at all, these are refused: NaN and infinities, keys that occur twice in an object, integers
    beyond 64 bits, lone surrogates, and nesting deeper than `MAX_DEPTH`. Each of them passes `json.loads` and then
    fails, or is silently changed, somewhere else.

    Args:
        where: the data comes from, for the error.

    Raises:
        CorruptArtifactError: anything of the above, or the outermost value is not `expected`.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object_of,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer,
        )
        _check_values(value)
    except (ValueError, RecursionError) as error:  # the decoders' errors are ValueErrors
        raise CorruptArtifactError(f"{where} is not a valid {what} ({_reason(error)}): {remedy}") from None
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise CorruptArtifactError(
            f"{where} is not a valid {what} (it holds {_name(type(value))}, expected {_name(expected)}): {remedy}"
        )
    return value


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:80]!r} occurs twice in an object")
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _finite(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    # Compare lengths first: converting thousands of digits is slow, and refused by Python beyond 4,300.
    if len(digits) > 21 or abs(value := int(digits)) > MAX_INTEGER:
        raise ValueError(f"the integer {digits[:40]}{'...' if len(digits) > 40 else ''} does not fit into 64 bits")
    return value


def _check_values(value: Any) -> None:
    """Raise ValueError where values nest too deep or a string cannot be encoded; level by level, no recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                inner += item.keys()
                inner += item.values()
            elif isinstance(item, list):
                inner += item
            elif isinstance(item, str) and not item.isascii():
                item.encode("utf-8")
        if not inner:
            return
        level = inner
    raise ValueError(f"values nest more than {MAX_DEPTH} deep")


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "values nest too deep"
    if isinstance(error, UnicodeEncodeError):
        return "a string holds half of a surrogate pair"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return str(error)


def _name(kind: type) -> str:
    return _NAMES.get(kind, "null" if kind is type(None) else kind.__name__)


#: NumPy evaluates the header as a Python literal. Ours have 128 bytes.
MAX_HEADER_BYTES = 4096
_READERS: dict[tuple[int, int], Callable[..., tuple[tuple[int, ...], bool, np.dtype]]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_array(
    path: Path,
    *,
    what: str,
    dtype: np.dtype,
    shape: tuple[int | None, ...],
    remedy: str = "make it again",
) -> np.ndarray:
    """Map a `.npy` file read-only.

    Args:
        what: the file holds, for the error: `checksums`.
        shape: None for a dimension of any length.
        remedy: for the error: what to do about a damaged file.

    Returns:
        The array in C order; a `np.memmap` unless it is empty.

    Raises:
        CorruptArtifactError: for anything wrong: a missing file, a damaged header, another dtype or shape, a size that
            does not match the header.
    """
    try:
        with open_regular(path) as stream:
            found, offset = read_header(stream, dtype)
            if not _matches(found, shape):
                raise ValueError(f"it has shape {_shape(found)}, expected {_shape(shape)}")
            expected_bytes = offset + math.prod(found) * dtype.itemsize
            stream.seek(0, 2)
            if (size_bytes := stream.tell()) != expected_bytes:
                raise ValueError(f"it has {size_bytes} bytes, expected {expected_bytes}")
            if 0 in found:
                return np.zeros(found, dtype)
            return np.memmap(stream, dtype, "r", offset, found)
    except (OSError, ValueError, MiniPLMError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise CorruptArtifactError(f"{path} does not hold the {what} ({reason}): {remedy}") from None


def read_header(stream: BinaryIO, dtype: np.dtype) -> tuple[tuple[int, ...], int]:
    """Read the header of an array in C order.

    Returns:
        The shape, and the byte at which the values start.

    Raises:
        ValueError: not a header, or that of an array of another dtype or order.
    """
    start = stream.tell()
    try:
        reader = _READERS.get(np.lib.format.read_magic(stream))
        if reader is None:
            raise ValueError("another version of the format")
        # The length comes first: a damaged one must not make us read a gigabyte.
        found, fortran_order, found_dtype = reader(_Bounded(stream), max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # NumPy evaluates a Python literal: nearly every kind of error can come out of it
        raise ValueError(f"the header is damaged: {str(error) or type(error).__name__}") from None
    if found_dtype != dtype:
        raise ValueError(f"it holds values of {found_dtype}, expected {dtype}")
    if fortran_order and sum(length != 1 for length in found) > 1:
        raise ValueError("it is in Fortran order, expected C order")
    if any(isinstance(length, bool) or length < 0 for length in found):
        raise ValueError(f"it has shape {_shape(found)}")
    return found, stream.tell() - start


class _Bounded:
    """A stream that does not read more at once than a header may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, num_bytes: int) -> Any:
        if num_bytes > MAX_HEADER_BYTES:
            raise ValueError(f"it would have {num_bytes} bytes")
        return self._stream.read(num_bytes)


def _matches(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    return len(found) == len(expected) and all(
        length in (None, there) for there, length in zip(found, expected, strict=True)
    )


def _shape(shape: tuple[int | None, ...]) -> str:
    inner = ", ".join("any" if length is None else str(length) for length in shape)
    return f"({inner},)" if len(shape) == 1 else f"({inner})"
