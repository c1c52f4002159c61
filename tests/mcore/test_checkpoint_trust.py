"""Checkpoints that would run code are refused before torch reads them; those that torch and Megatron write are not."""

import argparse
import dataclasses
import enum
import importlib
import os
import pickle
import signal
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint import FileSystemWriter, save

from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.mcore import checkpoint_trust
from megatron_miniplm.mcore.checkpoint_trust import require_harmless

ARGS = argparse.Namespace(
    lr=1e-4,
    path=Path("x"),
    dtype=torch.bfloat16,
    stop=signal.SIGTERM,
    names=OrderedDict(a=(1, {2}, b"\xff")),
    device=torch.device("cpu"),
)


class Runs:
    """Creates the file `ran` when it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "ran")

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def checkpoint(directory: Path, **objects: Any) -> Path:
    """As torch.distributed.checkpoint writes it; `objects` are pickled into a data file."""
    state = {"weight": torch.ones(3, 2), "generator": torch.get_rng_state(), **objects}
    save(state, storage_writer=FileSystemWriter(directory / "iter"), no_dist=True)
    return directory / "iter"


def test_a_checkpoint_of_tensors_and_arguments_passes(tmp_path: Path) -> None:
    require_harmless(checkpoint(tmp_path, args=[ARGS, {"rng": torch.get_rng_state()}]))
    require_harmless(tmp_path)  # another format


def test_an_object_in_a_data_file_is_refused_and_not_run(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path, args=[Runs(tmp_path)])
    with pytest.raises(MiniPLMError) as raised:
        require_harmless(directory)
    assert "distcp names the Python object 'posix.mkdir'" in str(raised.value)
    assert "MINIPLM_TRUST_CHECKPOINT=1" in str(raised.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_an_object_in_the_metadata_is_refused_and_not_run(
    tmp_path: Path, protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"state_dict_metadata": Runs(tmp_path)}, protocol))
    with pytest.raises(MiniPLMError, match=r"\.metadata names the Python object 'posix\.mkdir'"):
        require_harmless(tmp_path)
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv("MINIPLM_TRUST_CHECKPOINT", "1")
    require_harmless(tmp_path)


@pytest.mark.parametrize("name", ["os.system", "FileSystemWriter", "pickle.loads"])
def test_what_an_allowed_module_has_imported_is_not_allowed(tmp_path: Path, name: str) -> None:
    """Protocol 4 looks names up with dots."""
    module = b"torch.distributed.checkpoint.filesystem"
    text = b"".join(b"\x8c" + bytes([len(part)]) + part for part in (module, name.encode()))
    (tmp_path / ".metadata").write_bytes(b"\x80\x04" + text + b"\x93.")
    with pytest.raises(MiniPLMError, match="names the Python object"):
        require_harmless(tmp_path)


def test_allowed_names_are_records_enumerations_and_values() -> None:
    """Nothing that is allowed does anything when it is called with arguments of a stranger's choice."""
    rebuilders = {
        ("torch.serialization", "_get_layout"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("_codecs", "encode"),
    }
    for table in (checkpoint_trust.METADATA_GLOBALS, checkpoint_trust.OBJECT_GLOBALS):
        for module, names in table.items():
            if module.startswith("torch.distributed"):
                found = importlib.import_module(module)
                for name in names:
                    kind = getattr(found, name)
                    assert dataclasses.is_dataclass(kind) or issubclass(kind, enum.Enum), (module, name)
            elif module == "torch":
                for name in names:
                    assert isinstance(getattr(torch, name), (type, torch.dtype)), name
            elif module.startswith(("torch.", "_codecs")):
                found = importlib.import_module(module)
                for name in names:
                    assert isinstance(getattr(found, name), type) or (module, name) in rebuilders, (module, name)


@pytest.mark.parametrize("relative", ["/etc/hostname", "../outside"])
def test_the_metadata_cannot_lead_out_of_the_checkpoint(tmp_path: Path, relative: str) -> None:
    directory = checkpoint(tmp_path, args=[ARGS])
    (file,) = directory.glob("*.distcp")
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = relative
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(MiniPLMError, match="expected a path below"):
        require_harmless(directory)
    assert file.exists()


@fuzz("checkpoint", 60)
@given(place=st.integers(0, 1 << 12), value=st.integers(0, 255), cut=st.booleans(), in_data=st.booleans())
def test_fuzz_damage(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, cut: bool, in_data: bool
) -> None:
    """A damaged file passes, or gives one of our errors."""
    base = tmp_path_factory.getbasetemp() / "trust"
    if not base.exists():
        checkpoint(base, args=[ARGS])
    directory = base / "iter"
    path = next(directory.glob("*.distcp")) if in_data else directory / ".metadata"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[place % len(whole)] = value
    try:
        path.write_bytes(damaged[: place % len(whole)] if cut else damaged)
        checkpoint_trust._require_harmless.cache_clear()
        require_harmless(directory)
    except MiniPLMError as error:
        assert str(directory) in str(error)  # noqa: PT017
    finally:
        path.write_bytes(whole)
