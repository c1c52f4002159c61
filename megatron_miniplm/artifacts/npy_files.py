"""`.npy` files that somebody else may have written or damaged: mapped only if header and size are as expected."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.errors import CorruptArtifactError, MiniPLMError

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
