"""The safetensors files of a directory: names, shapes and completeness without torch, and slices with it.

The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header that gives each
tensor's dtype, shape and byte range, then the bytes, which the ranges cover without gap or overlap. The header is
checked before anything is read by it.
"""

import math
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeGuard

from megatron_miniplm.artifacts.reading import open_regular, parse_json, path_below, read_json
from megatron_miniplm.errors import InputError, one_line
from megatron_miniplm.mcore.huggingface.architecture import Architecture
from megatron_miniplm.mcore.huggingface.mapping import tensor_shapes

if TYPE_CHECKING:
    import torch


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


def _is_metadata(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


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


#: Writers of large tensors fail when less than one of their buffers is left.
_FULL_BYTES = 16 << 20
_RETRY = "free some space and run the same command again"


def model_bytes(architecture: Architecture, bytes_per_value: int) -> int:
    """Bytes of the weights, without padding."""
    return bytes_per_value * sum(math.prod(shape) for shape in tensor_shapes(architecture).values())


def require_space(path: Path, num_bytes: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
        InputError: fewer bytes than `num_bytes` are free where `path` is, or will be.
    """
    free = _free_bytes(path)
    if free < num_bytes:
        raise InputError(
            f"{path} cannot be written (no space left: {num_bytes:,} bytes are needed, {free:,} are free): {_RETRY}"
        )


def unwritable(path: Path, reason: str) -> InputError:
    """What a failed write of `path` is to the user.

    Args:
        reason: of the library that wrote; some hide the operating system's.
    """
    free = _free_bytes(path)
    if free < _FULL_BYTES:
        reason = f"no space left, the disk has {free:,} bytes free; {reason}"
    return InputError(f"{path} cannot be written ({reason[:300]}): {_RETRY}")


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free


SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_MAX_INDEX_BYTES = 64 << 20


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every tensor that the directory's safetensors files hold, by name; reads the headers only.

    Raises:
        InputError: no safetensors there, a shard is missing or truncated, or index and shards disagree.
    """
    index_path = directory / INDEX_FILE
    if not index_path.exists():
        if not (directory / SINGLE_FILE).exists():
            raise InputError(
                f"{directory} has neither {SINGLE_FILE} nor {INDEX_FILE}: download its safetensors files, or save the "
                "model again with transformers' save_pretrained"
            )
        return read_header(directory / SINGLE_FILE)
    if (directory / SINGLE_FILE).exists():
        raise InputError(f"{directory} has both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is out of date")
    file_by_name = _weight_map(index_path)
    headers: dict[str, dict[str, StoredTensor]] = {}
    for file_name in sorted(set(file_by_name.values())):
        path = path_below(directory, file_name, named_by=index_path)
        try:
            headers[file_name] = read_header(path)
        except FileNotFoundError:
            raise InputError(f"{path} is missing, but {INDEX_FILE} names it: {AGAIN}") from None
    for name, file_name in file_by_name.items():
        if name not in headers[file_name]:
            raise InputError(f"{directory / file_name} lacks {name}, which {INDEX_FILE} says is there: {AGAIN}")
    tensors: dict[str, StoredTensor] = {}
    for header in headers.values():
        for name, tensor in header.items():
            if name in tensors:
                raise InputError(f"{name} is in both {tensors[name].file} and {tensor.file}: {AGAIN}")
            tensors[name] = tensor
    return tensors


def files_of(tensors: dict[str, StoredTensor]) -> list[Path]:
    """The files that hold the tensors, sorted."""
    return sorted({tensor.file for tensor in tensors.values()})


def _weight_map(index_path: Path) -> dict[str, str]:
    """Tensor -> file name."""
    index = read_json(index_path, what="index of safetensors files", max_bytes=_MAX_INDEX_BYTES, remedy=AGAIN)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file_name, str) for file_name in weight_map.values()):
        raise InputError(f"{index_path} is no index of safetensors files (its weight_map names no files): {AGAIN}")
    return weight_map


class SliceReader:
    """Reads slices of tensors; a rank touches only the bytes that it asks for (the files are mapped).

    with SliceReader(tensors) as reader:
        rows = reader.read("model.norm.weight", axis=0, start=0, stop=64)
    """

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self._tensors = tensors
        self._open: dict[Path, Any] = {}

    def read(self, name: str, *, axis: int, start: int, stop: int) -> "torch.Tensor":
        """Rows (axis 0) or columns (axis 1) `start:stop` of a tensor, on the CPU, in its own dtype."""
        from safetensors import SafetensorError, safe_open

        file = self._tensors[name].file
        try:
            if file not in self._open:
                self._open[file] = safe_open(str(file), framework="pt", device="cpu")
            part = self._open[file].get_slice(name)
            return part[start:stop] if axis == 0 else part[:, start:stop]
        except SafetensorError as error:
            raise InputError(f"{name} cannot be read from {file} ({one_line(error)}): {AGAIN}") from None

    def __enter__(self) -> "SliceReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
