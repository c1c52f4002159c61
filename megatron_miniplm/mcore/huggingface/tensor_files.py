"""The safetensors files of a directory: names, shapes and completeness without torch, and slices with it."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts.json_files import read_json
from megatron_miniplm.artifacts.regular_files import path_below
from megatron_miniplm.errors import InputError, one_line
from megatron_miniplm.mcore.huggingface.safetensors_header import AGAIN, StoredTensor, read_header

if TYPE_CHECKING:
    import torch

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
