"""One block of scores, byte for byte: two NumPy arrays in one file, the scores and the checksum of their bytes.

    header of the scores       np.load(path) reads them, and stops here
    scores                     (sequences of the block,) of SCORE_DTYPE
    header of the checksum
    checksum                   (1,) of CHECKSUM_DTYPE: CRC-32 of header and scores

What the plan says of a block gives its headers and its size, so a reader compares bytes and parses nothing. Format
page: docs/formats.md.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import array_header
from megatron_miniplm.errors import CorruptArtifactError

#: `nll`: sum over the scored tokens, nats. `num_tokens`: scored tokens; 0 where there was nothing to predict.
SCORE_DTYPE = np.dtype([("nll", "<f4"), ("num_tokens", "<i4")])
CHECKSUM_DTYPE = np.dtype("<u4")
#: `num_tokens` of a sequence that the run left out on purpose; its `nll` is 0.
NOT_SCORED = -1

REMEDY = "delete it and run the same scoring command again"


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The sequences of all prefixes in order, cut into blocks of equal size; the last may be shorter."""

    num_sequences: int
    block_sequences: int

    @classmethod
    def of(cls, identity: dict[str, Any]) -> "BlockPlan":
        """The plan that a store's identity fixes.

        Raises:
            KeyError, TypeError, ValueError: it is none of a store.
        """
        plan = cls(
            num_sequences=sum(prefix["num_sequences"] for prefix in identity["corpus"]),
            block_sequences=identity["settings"]["block_sequences"],
        )
        if not isinstance(plan.num_sequences, int) or not isinstance(plan.block_sequences, int):
            raise TypeError("counts of sequences must be integers")
        if plan.block_sequences < 1:
            raise ValueError(f"blocks of {plan.block_sequences} sequences")
        return plan

    @property
    def num_blocks(self) -> int:
        return -(-self.num_sequences // self.block_sequences)

    def sequences(self, block: int) -> range:
        """Global ids of a block's sequences."""
        start = block * self.block_sequences
        return range(start, min(start + self.block_sequences, self.num_sequences))

    def blocks_of(self, sequences: range) -> range:
        """The blocks that hold a run of sequences."""
        if not sequences:
            return range(0)
        return range(sequences.start // self.block_sequences, -(-sequences.stop // self.block_sequences))

    def block_bytes(self, block: int) -> int:
        """Size of a block's file."""
        num_sequences = len(self.sequences(block))
        return len(_score_header(num_sequences)) + num_sequences * SCORE_DTYPE.itemsize + _TRAILER_BYTES


def block_name(block: int) -> str:
    return f"{block:08d}.npy"


def encode_block(scores_N: np.ndarray) -> bytes:
    """The file of a block, from its scores of SCORE_DTYPE."""
    signed = _score_header(len(scores_N)) + scores_N.tobytes()
    return signed + _CHECKSUM_HEADER + np.array([zlib.crc32(signed)], CHECKSUM_DTYPE).tobytes()


def read_block_into(scores_N: np.ndarray, directory: Path, name: str, descriptor: int) -> int:
    """Read one block's scores to where they are wanted; nothing is copied.

    A block of 4,096 takes 25 microseconds, two thirds of them the system's and the checksum's.

    Args:
        scores_N: contiguous, as many as the plan says.
        directory, name: where the block lies.
        descriptor: of the directory; saves the walk along the path.

    Returns:
        The block's checksum.

    Raises:
        CorruptArtifactError: the file is not that of a block of so many sequences, or not whole.
    """
    expected_header = _score_header(len(scores_N))
    header, trailer = bytearray(len(expected_header)), bytearray(_TRAILER_BYTES)
    body = memoryview(scores_N.view(np.uint8))
    expected_bytes = len(header) + len(body) + len(trailer)
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=descriptor)
        try:
            # One byte more than there should be shows a file that is too long, without a `stat`.
            buffers: list[bytearray | memoryview] = [header, body, trailer, bytearray(1)]
            found_bytes = os.readv(file, buffers)
            if found_bytes < expected_bytes:
                found_bytes = _read_rest(file, buffers, found_bytes)
            if found_bytes > expected_bytes:
                found_bytes = os.fstat(file).st_size
        finally:
            os.close(file)
    except OSError as error:
        raise CorruptArtifactError(f"{directory / name} cannot be read ({error.strerror}): {REMEDY}") from None
    if found_bytes != expected_bytes:
        raise CorruptArtifactError(wrong_size(directory / name, found_bytes, expected_bytes))
    if header != expected_header or not trailer.startswith(_CHECKSUM_HEADER):
        raise CorruptArtifactError(
            f"{directory / name} does not hold ({len(scores_N)},) of {SCORE_DTYPE.descr} and a checksum: {REMEDY}"
        )
    checksum = zlib.crc32(body, zlib.crc32(header))
    recorded = int.from_bytes(trailer[len(_CHECKSUM_HEADER) :], "little")
    if checksum != recorded:
        raise CorruptArtifactError(
            f"{directory / name} has changed since it was written (checksum {checksum:08x}, expected "
            f"{recorded:08x}): {REMEDY}"
        )
    return checksum


def wrong_size(path: Path, found_bytes: int, expected_bytes: int) -> str:
    return f"{path} has {found_bytes} bytes, expected {expected_bytes}: {REMEDY}"


def _read_rest(file: int, buffers: Sequence[bytearray | memoryview], num_read: int) -> int:
    """Go on filling buffers until the file ends; a system need not read all at once. Returns the bytes in them."""
    rest = [memoryview(buffer) for buffer in buffers]
    count = num_read
    while rest:
        while rest and count >= len(rest[0]):
            count -= len(rest.pop(0))
        if not rest:
            break
        rest[0] = rest[0][count:]
        if not (count := os.readv(file, rest)):
            break
        num_read += count
    return num_read


@lru_cache
def _score_header(num_sequences: int) -> bytes:
    return array_header(num_sequences, SCORE_DTYPE)


_CHECKSUM_HEADER = array_header(1, CHECKSUM_DTYPE)
_TRAILER_BYTES = len(_CHECKSUM_HEADER) + CHECKSUM_DTYPE.itemsize
