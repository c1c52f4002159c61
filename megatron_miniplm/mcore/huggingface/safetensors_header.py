"""The header of a safetensors file, checked before anything is read by it.

The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header that gives each
tensor's dtype, shape and byte range, then the bytes, which the ranges cover without gap or overlap.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from megatron_miniplm.artifacts.json_files import parse_json
from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.errors import InputError

AGAIN = "copy or download it again"
#: Bytes of one value.
DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_LENGTH_BYTES = 8
#: Room for more than 100,000 tensors in one file; the format allows 100 MB, which would take gigabytes to parse.
_MAX_HEADER_BYTES = 16 << 20
_MAX_DIMENSIONS = 8


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        dtype: in safetensors' words, such as `BF16`.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, by name.

    Raises:
        InputError: it is no regular file, is truncated, or its header describes no tensors as safetensors does.
        CorruptArtifactError: its header is no JSON object.
        FileNotFoundError: there is no such file.
    """
    with open_regular(path) as stream:
        size_bytes = stream.seek(0, 2)
        stream.seek(0)
        start = stream.read(_LENGTH_BYTES)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size_bytes
        if _LENGTH_BYTES + header_bytes > size_bytes:
            raise InputError(f"{path} is truncated within its header, at {size_bytes:,} bytes: {AGAIN}")
        if header_bytes > _MAX_HEADER_BYTES:
            raise InputError(
                f"{path} has a header of {header_bytes:,} bytes, the most that is accepted is {_MAX_HEADER_BYTES:,}: "
                "save the model again in more files (save_pretrained with max_shard_size)"
            )
        header = stream.read(header_bytes)
    entries = parse_json(header, where=path, what="safetensors header", remedy=AGAIN)
    metadata = entries.pop("__metadata__", None)
    if metadata is not None and not _is_metadata(metadata):
        raise InputError(f"{path} is no safetensors file (expected __metadata__ to be an object of strings): {AGAIN}")
    places = {name: _entry(path, name, entry) for name, entry in entries.items()}
    stop = _check_ranges(path, {name: place for name, (_, place) in places.items()})
    expected_bytes = _LENGTH_BYTES + header_bytes + stop
    if size_bytes < expected_bytes:
        raise InputError(f"{path} is truncated: {size_bytes:,} bytes of {expected_bytes:,}: {AGAIN}")
    if size_bytes > expected_bytes:
        raise InputError(f"{path} has {size_bytes - expected_bytes:,} bytes after its last tensor: {AGAIN}")
    return {name: tensor for name, (tensor, _) in places.items()}


def _entry(path: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """A tensor and its byte range."""

    def refuse(reason: str) -> InputError:
        return InputError(f"{path} is no safetensors file (tensor {name[:120]!r}: {reason}): {AGAIN}")

    if not isinstance(entry, dict):
        raise refuse("its entry in the header is not an object")
    dtype, shape, place = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refuse(f"dtype is {str(dtype)[:40]!r}, known are {', '.join(DTYPE_BYTES)}")
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise refuse(f"shape is {str(shape)[:80]}, expected up to {_MAX_DIMENSIONS} sizes")
    if not _is_sizes(place) or len(place) != 2 or place[0] > place[1]:
        raise refuse(f"data_offsets is {str(place)[:80]}, expected [start, stop]")
    tensor = StoredTensor(path, tuple(shape), dtype)
    if tensor.num_bytes != place[1] - place[0]:
        raise refuse(f"{place[1] - place[0]:,} bytes, its shape and dtype make {tensor.num_bytes:,}")
    return tensor, (place[0], place[1])


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


def _is_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_ranges(path: Path, places: dict[str, tuple[int, int]]) -> int:
    """The byte at which the last tensor ends; each must start where the one before it ends."""
    stop = 0
    for name, (start, next_stop) in sorted(places.items(), key=lambda item: item[1]):
        if start != stop:
            reason = "overlaps the tensor before it" if start < stop else "leaves a gap before it"
            raise InputError(f"{path} is no safetensors file (tensor {name[:120]!r} {reason}): {AGAIN}")
        stop = next_stop
    return stop
