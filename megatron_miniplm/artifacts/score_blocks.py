"""One block of scores, byte for byte: two NumPy arrays in one file, the scores and a seal.

    header of the scores       np.load(path) reads them, and stops here
    scores                     (sequences of the block,) of SCORE_DTYPE
    header of the seal
    seal                       (5,) of CHECKSUM_DTYPE: digest of the identity that the block was computed under, and
                               CRC-32 of header and scores

The identity in the seal binds a block to its store: a job that was started for another model cannot leave a block here
that is taken for one of ours. In format 2 the seal is the CRC-32 alone.

The plan and the identity give headers, seal and size of a block, so a reader compares bytes and parses nothing. Format
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
from megatron_miniplm.artifacts.fingerprint import DIGEST_BYTES, SHORT_HEX, Fingerprint
from megatron_miniplm.errors import CorruptArtifactError

#: `nll`: sum over the scored tokens, nats. `num_tokens`: scored tokens; 0 where there was nothing to predict.
SCORE_DTYPE = np.dtype([("nll", "<f4"), ("num_tokens", "<i4")])
CHECKSUM_DTYPE = np.dtype("<u4")
#: `num_tokens` of a sequence that the run left out on purpose; its `nll` is 0.
NOT_SCORED = -1

REMEDY = "delete it and run the same scoring command again"

#: Bounds on what an identity may say, far above any corpus: they bound what is allocated because of it.
MAX_SEQUENCES = 1 << 40
MAX_BLOCK_SEQUENCES = 1 << 28
MAX_BLOCKS = 1 << 22

#: So many blocks a corpus is cut into, unless they would be smaller or larger than that many full windows. Windows of a
#: block are packed into rows by themselves, so small blocks leave rows partly empty; a large one is lost by a kill.
WANTED_BLOCKS = 4096
MIN_BLOCK_WINDOWS = 64
MAX_BLOCK_WINDOWS = 4096


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The sequences of all prefixes in order, cut into blocks of equal size; the last may be shorter."""

    num_sequences: int
    block_sequences: int

    @classmethod
    def of(cls, identity: dict[str, Any]) -> "BlockPlan":
        """The plan that a store's identity fixes.

        Raises:
            ValueError: counts that are no counts, or beyond the bounds of this module.
        """
        counts = [prefix.get("num_sequences") for prefix in identity["corpus"]]
        num_sequences = sum(whole_number(count, "num_sequences", 0, MAX_SEQUENCES) for count in counts)
        block_sequences = identity["settings"].get("block_sequences")
        block_sequences = whole_number(block_sequences, "block_sequences", 1, MAX_BLOCK_SEQUENCES)
        plan = cls(num_sequences=num_sequences, block_sequences=block_sequences)
        if plan.num_blocks > MAX_BLOCKS:
            raise ValueError(
                f"{num_sequences} sequences in blocks of {block_sequences} are {plan.num_blocks} blocks, expected at "
                f"most {MAX_BLOCKS}"
            )
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

    def block_bytes(self, block: int, seal_bytes: int | None = None) -> int:
        """Size of a block's file; in the current format unless another size of the seal is given."""
        num_sequences = len(self.sequences(block))
        scores_bytes = len(_score_header(num_sequences)) + num_sequences * SCORE_DTYPE.itemsize
        return scores_bytes + (SEAL_BYTES if seal_bytes is None else seal_bytes)


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What ends a block's file: the second array, of which only the CRC-32 differs from block to block.

    Attributes:
        header: of the array.
        identity: digest of the identity, which follows it; empty in format 2.
    """

    header: bytes
    identity: bytes

    @classmethod
    def of(cls, identity_digest: Fingerprint) -> "Seal":
        identity = bytes.fromhex(identity_digest)
        num_words = len(identity) // CHECKSUM_DTYPE.itemsize + 1
        return cls(header=array_header(num_words, CHECKSUM_DTYPE), identity=identity)

    @property
    def num_bytes(self) -> int:
        return len(self.header) + len(self.identity) + _CRC_BYTES

    def ending_in(self, checksum: int) -> bytes:
        return self.header + self.identity + checksum.to_bytes(_CRC_BYTES, "little")


def default_block_sequences(*, num_sequences: int, num_tokens: int, context_tokens: int) -> int:
    """Sequences per block where none are given.

    It depends on the corpus and the context alone, not on the number of ranks, because it is part of the identity that
    every job on a store must have.

    Args:
        num_tokens: of all sequences that are scored.
        context_tokens: of a window.
    """
    if not num_tokens:
        return max(1, min(num_sequences, MAX_BLOCK_WINDOWS))
    least, most = MIN_BLOCK_WINDOWS * context_tokens, MAX_BLOCK_WINDOWS * context_tokens
    block_tokens = min(max(-(-num_tokens // WANTED_BLOCKS), least), most)
    return max(1, min(num_sequences, -(-block_tokens * num_sequences // num_tokens), MAX_BLOCK_SEQUENCES))


def whole_number(value: object, name: str, least: int, most: int) -> int:
    """A count from an identity.

    Raises:
        ValueError: not an integer from `least` to `most`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]}, expected an integer from {least} to {most}")
    return value


def block_name(block: int) -> str:
    return f"{block:08d}.npy"


def encode_block(scores_N: np.ndarray, seal: Seal) -> bytes:
    """The file of a block, from its scores of SCORE_DTYPE."""
    signed = _score_header(len(scores_N)) + scores_N.tobytes()
    return signed + seal.ending_in(zlib.crc32(signed))


def read_block_into(scores_N: np.ndarray, directory: Path, name: str, descriptor: int, seal: Seal) -> int:
    """Read one block's scores to where they are wanted; nothing is copied.

    A block of 4,096 takes 25 microseconds, two thirds of them the system's and the checksum's. A FIFO or a device in
    its place is found to have another size.

    Args:
        scores_N: contiguous, as many as the plan says.
        directory, name: where the block lies.
        descriptor: of the directory; saves the walk along the path.
        seal: of the store's blocks.

    Returns:
        The block's checksum.

    Raises:
        CorruptArtifactError: the file is not that of a block of so many sequences and this identity, or not whole.
    """
    expected_header = _score_header(len(scores_N))
    header, trailer = bytearray(len(expected_header)), bytearray(seal.num_bytes)
    body = memoryview(scores_N.view(np.uint8))
    expected_bytes = len(header) + len(body) + len(trailer)
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=descriptor)
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
    if header != expected_header or not trailer.startswith(seal.header):
        raise CorruptArtifactError(
            f"{directory / name} does not hold ({len(scores_N)},) of {SCORE_DTYPE.descr} and a seal: {REMEDY}"
        )
    if (identity := trailer[len(seal.header) : -_CRC_BYTES]) != seal.identity:
        raise CorruptArtifactError(
            f"{directory / name} was scored with another model, corpus or settings than this directory is for "
            f"(identity {identity.hex()[:SHORT_HEX]}, expected {seal.identity.hex()[:SHORT_HEX]}): {REMEDY}"
        )
    checksum = zlib.crc32(body, zlib.crc32(header))
    recorded = int.from_bytes(trailer[-_CRC_BYTES:], "little")
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


_CRC_BYTES = CHECKSUM_DTYPE.itemsize
#: Of format 2.
UNBOUND = Seal(header=array_header(1, CHECKSUM_DTYPE), identity=b"")
SEAL_BYTES = Seal.of("00" * DIGEST_BYTES).num_bytes


def runs_of(blocks: list[int]) -> list[list[int]]:
    """Ascending numbers as [first, last] of each run without a gap."""
    if not blocks:
        return []
    blocks_B = np.array(blocks)
    breaks = np.flatnonzero(np.diff(blocks_B) != 1)
    firsts = blocks_B[np.concatenate(([0], breaks + 1))]
    lasts = blocks_B[np.concatenate((breaks, [-1]))]
    return [[int(first), int(last)] for first, last in zip(firsts, lasts, strict=True)]
