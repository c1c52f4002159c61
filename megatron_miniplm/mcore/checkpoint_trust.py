"""What a Megatron checkpoint would execute: its pickles are read here first, without running or importing anything.

torch.distributed.checkpoint reads `.metadata` with `pickle.load` (filesystem.py:938 of torch 2.14) and the objects in
the `.distcp` files with `torch.load(weights_only=False)` (default_planner.py:388). A pickle may name any function to be
called, so that loading a checkpoint from elsewhere is running a program from elsewhere. This check refuses every name
that Megatron does not write. It is a check of known files, no sandbox: only load what you trust.
"""

import functools
import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from megatron_miniplm.artifacts.reading import open_regular, path_below
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError, one_line

#: Set it to 1 to load checkpoints whatever they hold.
TRUST_VARIABLE = "MINIPLM_TRUST_CHECKPOINT"
METADATA = ".metadata"
_AGAIN = "copy or save the checkpoint again"
#: Arguments, random states and the like; tensors are not read.
_MAX_OBJECT_BYTES = 256 << 20

_DTYPES = frozenset(
    {
        *("bool", "uint8", "int8", "int16", "int32", "int64", "float8_e4m3fn", "float8_e5m2"),
        *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    }
)
_STORAGES = frozenset(
    f"{kind}Storage"
    for kind in ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double", "Untyped")
)
_TORCH = {"torch": _DTYPES | _STORAGES | {"Size", "device"}, "torch.serialization": frozenset({"_get_layout"})}
_CONTAINERS = {
    "builtins": frozenset({"set", "frozenset", "bytearray", "complex", "slice"}),
    "__builtin__": frozenset({"set", "frozenset", "bytearray", "complex", "slice"}),  # in protocol 2
    "collections": frozenset({"OrderedDict", "defaultdict"}),
    "_codecs": frozenset({"encode"}),
    "pathlib": frozenset({"Path", "PosixPath", "PurePosixPath"}),
    "pathlib._local": frozenset({"Path", "PosixPath", "PurePosixPath"}),
}
#: Module -> names that `.metadata` may hold; each is a plain record or an enumeration.
METADATA_GLOBALS: dict[str, frozenset[str]] = {
    **_TORCH,
    **_CONTAINERS,
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    "torch.distributed.checkpoint.filesystem": frozenset({"SerializationFormat", "_StorageInfo", "_StoragePrefix"}),
    "torch.distributed.checkpoint.planner": frozenset(
        {"BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"}
    ),
    "megatron.core.dist_checkpointing.strategies.torch": frozenset({"MCoreMetadata", "MCoreSavePlan"}),
}
#: The same for the objects of the data files: what `megatron.core.safe_globals` allows, and tensors.
OBJECT_GLOBALS: dict[str, frozenset[str]] = {
    **_TORCH,
    **_CONTAINERS,
    "argparse": frozenset({"Namespace"}),
    "types": frozenset({"SimpleNamespace"}),
    "signal": frozenset({"Signals"}),
    "_io": frozenset({"BytesIO"}),
    "torch._utils": frozenset({"_rebuild_tensor_v2", "_rebuild_parameter"}),
    "torch.storage": frozenset({"UntypedStorage", "TypedStorage"}),
    "torch._C": frozenset({"Generator"}),
    "numpy": frozenset({"dtype", "ndarray"}),
    "numpy.dtypes": frozenset({"UInt32DType"}),
    "numpy.core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "numpy._core.multiarray": frozenset({"_reconstruct", "scalar"}),
    "megatron.core.enums": frozenset({"ModelType"}),
    "megatron.core.optimizer.optimizer_config": frozenset({"OptimizerConfig"}),
    "megatron.core.rerun_state_machine": frozenset({"RerunDiagnostic", "RerunMode", "RerunState"}),
    "megatron.core.transformer.enums": frozenset(
        {
            "AttnBackend",
            "AttnMaskType",
            "AttnType",
            "CudaGraphModule",
            "CudaGraphScope",
            "InferenceCudaGraphScope",
            "LayerType",
            "ModelType",
        }
    ),
}


def require_harmless(directory: Path) -> None:
    """Refuse a `torch_dist` checkpoint that names a Python object which Megatron does not write.

    Args:
        directory: of an iteration; one without `.metadata` passes (torch reads other formats without running code).

    Raises:
        InputError: names the file and the object.
        CorruptArtifactError: a file is damaged.
    """
    path = directory / METADATA
    if os.environ.get(TRUST_VARIABLE) == "1" or not os.path.lexists(path):
        return
    _require_harmless(directory, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _require_harmless(directory: Path, modified_ns: int) -> None:
    """Once a process for what programs ask for several times; only success is remembered."""
    path = directory / METADATA
    with open_regular(path) as stream:
        metadata = _read_pickle(stream.read(), METADATA_GLOBALS, path)
    for file, start, num_bytes in _stored_objects(metadata, path):
        with open_regular(file) as stream:
            stream.seek(start)
            archive = stream.read(num_bytes)
        for data in _pickles_of_archive(archive, file):
            _read_pickle(data, OBJECT_GLOBALS, file)


class _Stub:
    """Stands for any object of a pickle: takes arguments, state and items, and does nothing."""

    state: Any = None

    def __init__(self, *args: Any) -> None:
        pass

    def __new__(cls, *args: Any) -> "_Stub":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass

    def add(self, item: Any) -> None:
        pass


class _Bytes(_Stub):
    """A `BytesStorageMetadata`: the object is not a tensor."""


class _Reader(pickle.Unpickler):
    """Reads a pickle with stubs in place of all its names, and refuses a name that is not allowed."""

    def __init__(self, data: bytes, allowed: dict[str, frozenset[str]], place: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed = allowed
        self._place = place

    def find_class(self, module: str, name: str) -> Any:
        if name not in self._allowed.get(module, ()):
            _refuse(self._place, f"{module}.{name}")
        return _Bytes if name == "BytesStorageMetadata" else _Stub

    def persistent_load(self, identifier: Any) -> _Stub:
        return _Stub()


def _refuse(place: Path, name: str) -> NoReturn:
    raise InputError(
        f"{place} names the Python object {name[:200]!r}, which Megatron's checkpoints do not hold and which may run "
        f"any program when it is loaded: load checkpoints of people you trust only; {TRUST_VARIABLE}=1 loads this one"
    )


def _read_pickle(data: bytes, allowed: dict[str, frozenset[str]], place: Path) -> Any:
    try:
        return _Reader(data, allowed, place).load()
    except MiniPLMError:
        raise
    except Exception as error:  # damaged pickles raise anything: EOFError, KeyError, UnicodeDecodeError, ...
        raise CorruptArtifactError(f"{place} is not a whole pickle ({_reason(error)}): {_AGAIN}") from None


def _reason(error: Exception) -> str:
    return str(error)[:100] or type(error).__name__


def _stored_objects(metadata: Any, place: Path) -> Iterator[tuple[Path, int, int]]:
    """File, first byte and number of bytes of each object that is not a tensor."""
    try:
        kinds = metadata.state["state_dict_metadata"]
        for index, info in metadata.state["storage_data"].items():
            if isinstance(kinds[index.state["fqn"]], _Bytes):
                name, start, num_bytes = (info.state[key] for key in ("relative_path", "offset", "length"))
                if not 0 <= num_bytes <= _MAX_OBJECT_BYTES or start < 0:
                    raise ValueError(f"an object of {num_bytes} bytes at byte {start}")
                yield path_below(place.parent, name, named_by=place), start, num_bytes
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptArtifactError(f"{place} is not the index of a checkpoint ({one_line(error)}): {_AGAIN}") from None


def _pickles_of_archive(archive: bytes, place: Path) -> Iterator[bytes]:
    """The pickles of one object that `torch.save` wrote: a ZIP archive with one `data.pkl`."""
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            if any(name.endswith("constants.pkl") for name in members.namelist()):
                _refuse(place, "torch.jit.load")  # TorchScript, which is a program
            for member in members.infolist():
                if member.filename.endswith(".pkl"):
                    if member.file_size > _MAX_OBJECT_BYTES:
                        raise zipfile.BadZipFile(f"{member.filename} has {member.file_size:,} bytes")
                    yield members.read(member)
    except MiniPLMError:
        raise
    except Exception as error:  # damaged archives raise anything: BadZipFile, EOFError, UnicodeDecodeError, ...
        raise CorruptArtifactError(
            f"{place} holds an object that torch.save did not write ({_reason(error)}): {_AGAIN}"
        ) from None
