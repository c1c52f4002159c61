"""Arrays of a selection, compared with their checksums as they are read.

    0000_<name>.checksums.npy    for every BLOCK_SEQUENCES kept sequences, a CRC-32 each of indices, weights and values

Axes: K kept sequences, B blocks of them.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import array_header
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import CorruptArtifactError

INDEX_DTYPE = np.dtype("<i8")
WEIGHT_DTYPE = np.dtype("<f4")
VALUE_DTYPE = np.dtype("<f8")
#: 32 KiB of indices: small, because training reads single sequences and verifies whole blocks.
BLOCK_SEQUENCES = 4096
CHECKSUM_DTYPE = np.dtype([("indices", "<u4"), ("weights", "<u4"), ("values", "<u4")])

_BLOCKS_READ_TOGETHER = 256
_REMEDY = "make the selection again"


def num_blocks_of(num_sequences: int) -> int:
    return -(-num_sequences // BLOCK_SEQUENCES)


class BlockChecksums:
    """The CRC-32 of every block of an array that is written piece by piece."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._finished: list[int] = []
        self._current = 0
        self._num_in_current = 0

    def add(self, values_K: np.ndarray) -> None:
        values_K = np.ascontiguousarray(values_K, self._dtype)
        start = 0
        while start < len(values_K):
            part_K = values_K[start : start + BLOCK_SEQUENCES - self._num_in_current]
            self._current = zlib.crc32(part_K.data, self._current)
            self._num_in_current += len(part_K)
            start += len(part_K)
            if self._num_in_current == BLOCK_SEQUENCES:
                self._finished.append(self._current)
                self._current = self._num_in_current = 0

    def finished(self) -> np.ndarray:
        """One CRC-32 per block, uint32."""
        last = [self._current] if self._num_in_current else []
        return np.array([*self._finished, *last], np.uint32)


class CheckedArray:
    """One `.npy` of a selection. What it returns has been compared with its checksums in this process.

    Args:
        path: of the file; nothing is opened here.
        dtype: of its values.
        num_values: how many it must hold.
        crc32_B: one checksum per block.
    """

    def __init__(self, path: Path, dtype: np.dtype, num_values: int, crc32_B: np.ndarray) -> None:
        self.path = path
        self._dtype = dtype
        self._num_values = num_values
        self._crc32_B = crc32_B
        self._is_checked_B = np.zeros(len(crc32_B), bool)
        self._mapped_K: np.ndarray | None = None
        self._num_header_bytes = 0

    def whole(self) -> np.ndarray:
        """All values, mapped read-only, after one pass over the blocks that were not read yet (1 GB/s or more).

        Raises:
            CorruptArtifactError: the file is missing, has another size, or a block does not match its checksum.
        """
        self._check(0, len(self._is_checked_B))
        return self._mapped()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Some values, copied: no page of the file stays mapped. Raises what `whole` does."""
        self._check(start // BLOCK_SEQUENCES, num_blocks_of(stop))
        offset_bytes = self._header_bytes() + start * self._dtype.itemsize
        return np.fromfile(self.path, self._dtype, stop - start, offset=offset_bytes)

    def check(self, block: int) -> None:
        """Compare one block with its checksum, unless it was read before. Raises what `whole` does."""
        self._check(block, block + 1)

    def unchecked(self) -> np.ndarray:
        """All values, mapped, of which the caller checks the blocks that it uses."""
        return self._mapped()

    def _mapped(self) -> np.ndarray:
        if self._mapped_K is None:
            offset_bytes = self._header_bytes()
            if self._num_values:
                shape = (self._num_values,)
                self._mapped_K = np.memmap(self.path, self._dtype, "r", offset=offset_bytes, shape=shape)
            else:
                self._mapped_K = np.zeros(0, self._dtype)
        return self._mapped_K

    def _check(self, first: int, stop: int) -> None:
        """Compare blocks [first, stop) with their checksums, save those that were compared before."""
        for start in range(first, stop, _BLOCKS_READ_TOGETHER):
            end = min(start + _BLOCKS_READ_TOGETHER, stop)
            if self._is_checked_B[start:end].all():
                continue
            offset_bytes = self._header_bytes() + start * BLOCK_SEQUENCES * self._dtype.itemsize
            count = min(end * BLOCK_SEQUENCES, self._num_values) - start * BLOCK_SEQUENCES
            values_K = np.fromfile(self.path, self._dtype, count, offset=offset_bytes)
            for block in range(start, end):
                place = (block - start) * BLOCK_SEQUENCES
                if zlib.crc32(values_K[place : place + BLOCK_SEQUENCES].data) != self._crc32_B[block]:
                    last = min((block + 1) * BLOCK_SEQUENCES, self._num_values) - 1
                    raise CorruptArtifactError(
                        f"{self.path}: entries {block * BLOCK_SEQUENCES} to {last} do not match their checksum: "
                        f"the file has changed since it was written; {_REMEDY}"
                    )
            self._is_checked_B[start:end] = True

    def _header_bytes(self) -> int:
        """The size of the header, once the file is known to be what was written, as far as the values begin."""
        if not self._num_header_bytes:
            self._num_header_bytes = check_header(self.path, self._dtype, self._num_values)
        return self._num_header_bytes

    def __getstate__(self) -> dict[str, Any]:
        # Data workers map and verify for themselves: a pickled map would be a copy of the whole file.
        return {**self.__dict__, "_mapped_K": None, "_is_checked_B": np.zeros_like(self._is_checked_B)}


class KeptLookup:
    """Finds single kept sequences, and verifies the blocks that hold them and no others.

    Training calls it for every sample, so it is written for speed: about 10 microseconds for one to ten sequences.

    Args:
        indices, values, weights: of one prefix.
    """

    def __init__(self, indices: CheckedArray, values: CheckedArray, weights: CheckedArray) -> None:
        self._arrays = (indices, values, weights)
        # As plain arrays, which are read faster than maps.
        self._indices_K, self._values_K, self._weights_K = (np.asarray(array.unchecked()) for array in self._arrays)
        self._is_checked_B = np.zeros(num_blocks_of(len(self._indices_K)), bool)

    def find(self, sequences_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights of some sequences.

        Raises:
            CorruptArtifactError: a block is damaged, or a sequence is not kept.
        """
        places_S = np.searchsorted(self._indices_K, sequences_S)
        if len(places_S) and places_S.max() < len(self._indices_K):
            blocks_S = places_S // BLOCK_SEQUENCES
            if not self._is_checked_B[blocks_S].all():
                self._check(np.unique(blocks_S).tolist())
            if (self._indices_K[places_S] == sequences_S).all():
                return self._values_K[places_S], self._weights_K[places_S]
        elif not len(places_S):
            return self._values_K[places_S], self._weights_K[places_S]
        raise CorruptArtifactError(
            f"{self._arrays[0].path} lacks a sequence that was drawn from it: it has changed since the index caches of "
            f"the run were built, or is damaged; {_REMEDY}, and delete these caches"
        )

    def _check(self, blocks: list[int]) -> None:
        for block in blocks:
            for array in self._arrays:
                array.check(block)
        self._is_checked_B[blocks] = True

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptLookup, self._arrays  # without the maps, as the arrays themselves


def check_header(path: Path, dtype: np.dtype, num_values: int) -> int:
    """Check size and header of a `.npy` of one dimension that we wrote; returns the bytes of the header.

    The header is compared and not parsed: the file can only hold what is expected.

    Raises:
        CorruptArtifactError: it is missing, no regular file, or of another size, dtype or shape.
    """
    header = array_header(num_values, dtype)
    expected_bytes = len(header) + num_values * dtype.itemsize
    try:
        with open_regular(path) as stream:
            found, size_bytes = stream.read(len(header)), stream.seek(0, 2)
    except OSError as error:
        raise CorruptArtifactError(f"{path} cannot be read ({error.strerror}): {_REMEDY}") from None
    if found != header or size_bytes != expected_bytes:
        wrong = "a damaged header" if size_bytes == expected_bytes else f"{size_bytes} bytes"
        raise CorruptArtifactError(
            f"{path} has {wrong}, expected {num_values} values of {dtype} in {expected_bytes} bytes: {_REMEDY}"
        )
    return len(header)
