"""The safetensors files of a directory: names, shapes and completeness without torch, and slices with it.

The format (github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON header that gives each
tensor's dtype, shape and byte range, then the bytes.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_LENGTH_BYTES = 8
_AGAIN = "copy or download it again"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is.

    Attributes:
        dtype: in safetensors' words, such as `BF16`.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


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
        return _header(directory / SINGLE_FILE)
    file_by_name = _weight_map(index_path)
    headers: dict[str, dict[str, StoredTensor]] = {}
    for file_name in sorted(set(file_by_name.values())):
        if not (directory / file_name).exists():
            raise InputError(f"{directory / file_name} is missing, but {INDEX_FILE} names it: {_AGAIN}")
        headers[file_name] = _header(directory / file_name)
    for name, file_name in file_by_name.items():
        if name not in headers[file_name]:
            raise InputError(f"{directory / file_name} lacks {name}, which {INDEX_FILE} says is there: {_AGAIN}")
    tensors: dict[str, StoredTensor] = {}
    for header in headers.values():
        for name, tensor in header.items():
            if name in tensors:
                raise InputError(f"{name} is in both {tensors[name].file} and {tensor.file}: {_AGAIN}")
            tensors[name] = tensor
    return tensors


def files_of(tensors: dict[str, StoredTensor]) -> list[Path]:
    """The files that hold the tensors, sorted."""
    return sorted({tensor.file for tensor in tensors.values()})


def _weight_map(index_path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file_name) for name, file_name in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{index_path} is no index of safetensors files (no weight_map): {_AGAIN}") from None


def _header(path: Path) -> dict[str, StoredTensor]:
    size_bytes = path.stat().st_size
    with open(path, "rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == _LENGTH_BYTES else size_bytes
        if _LENGTH_BYTES + header_bytes > size_bytes:
            raise InputError(f"{path} is truncated within its header, at {size_bytes:,} bytes: {_AGAIN}")
        try:
            header: dict[str, Any] = json.loads(stream.read(header_bytes))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = {
                name: StoredTensor(path, tuple(entry["shape"]), entry["dtype"]) for name, entry in entries.items()
            }
            stop = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise InputError(f"{path} is no safetensors file (unreadable header): {_AGAIN}") from None
    expected_bytes = _LENGTH_BYTES + header_bytes + stop
    if size_bytes < expected_bytes:
        raise InputError(f"{path} is truncated: {size_bytes:,} bytes of {expected_bytes:,}: {_AGAIN}")
    return tensors


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
        from safetensors import safe_open

        file = self._tensors[name].file
        if file not in self._open:
            self._open[file] = safe_open(str(file), framework="pt", device="cpu")
        part = self._open[file].get_slice(name)
        return part[start:stop] if axis == 0 else part[:, start:stop]

    def __enter__(self) -> "SliceReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
