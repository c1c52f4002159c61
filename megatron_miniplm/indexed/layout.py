"""The byte layout of an `.idx` file, as Megatron-Core writes it (`core/datasets/indexed_dataset.py`, `_IndexWriter`).

Everything is little-endian. N sequences, D document boundaries:

    offset        bytes   field
    0             9       magic "MMIDIDX\\0\\0"
    9             8       version, uint64, always 1
    17            1       token dtype code, uint8 (see TOKEN_DTYPES)
    18            8       N, uint64
    26            8       D, uint64
    34            4 N     sequence lengths in tokens, int32
    34 + 4 N      8 N     sequence pointers: byte offsets into the .bin, int64
    34 + 12 N     8 D     document boundaries: sequence indices, int64; first 0, last N
    34 + 12 N+8 D N       sequence modes, int8; only in multimodal data sets
"""

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.errors import InputError

#: Megatron's `GPTDataset` numbers the sequences of a prefix in int32 (core/datasets/gpt_dataset.py, `document_index`).
MAX_SEQUENCES = 2**31 - 1

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
LENGTH_DTYPE = np.dtype("<i4")
POINTER_DTYPE = np.dtype("<i8")

#: Megatron's dtype codes (`DType`); text uses uint16 and int32 only.
TOKEN_DTYPES: dict[int, np.dtype] = {
    1: np.dtype("u1"),
    2: np.dtype("i1"),
    3: np.dtype("<i2"),
    4: np.dtype("<i4"),
    5: np.dtype("<i8"),
    6: np.dtype("<f8"),
    7: np.dtype("<f4"),
    8: np.dtype("<u2"),
}
_CODES = {dtype: code for code, dtype in TOKEN_DTYPES.items()}


def optimal_dtype(vocab_size: int) -> np.dtype:
    """The token dtype Megatron picks for a vocabulary (`DType.optimal_dtype`): uint16 below 65,500, else int32."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


def refuse_too_many(path: Path | str, num_sequences: int) -> None:
    """Raise InputError where Megatron cannot number the sequences of a prefix."""
    if num_sequences > MAX_SEQUENCES:
        raise InputError(
            f"{path}: {num_sequences:,} sequences, Megatron numbers at most {MAX_SEQUENCES:,} per prefix: use several "
            "smaller prefixes; merge-datasets --as-data-args lists them in one data_args.txt without copying them"
        )


def bin_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".bin")


def idx_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + ".idx")


@dataclass(frozen=True, kw_only=True)
class IndexHeader:
    """The fixed part of an `.idx` and the offsets that follow from it."""

    token_dtype: np.dtype
    num_sequences: int
    num_boundaries: int

    def pack(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, _CODES[self.token_dtype], self.num_sequences, self.num_boundaries)

    @property
    def lengths_offset(self) -> int:
        return HEADER.size

    @property
    def pointers_offset(self) -> int:
        return self.lengths_offset + self.num_sequences * LENGTH_DTYPE.itemsize

    @property
    def boundaries_offset(self) -> int:
        return self.pointers_offset + self.num_sequences * POINTER_DTYPE.itemsize

    @property
    def size_bytes(self) -> int:
        """Size of the whole `.idx` without sequence modes."""
        return self.boundaries_offset + self.num_boundaries * POINTER_DTYPE.itemsize
