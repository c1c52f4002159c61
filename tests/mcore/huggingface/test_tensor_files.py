"""Headers of safetensors files against the library's own reader, and headers that nobody should have to trust."""

import json
import os
import shutil
import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import huggingface_models
import pytest
from damage import NO_FILES, NUMBERS, damaged_bytes, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.tensor_files import (
    DTYPE_BYTES,
    model_bytes,
    read_header,
    require_space,
    stored_tensors,
    unwritable,
)


def tensor(start: Any, stop: Any, shape: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def write(path: Path, header: Any, num_bytes: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes))
    return path


def shapes_by_library(path: Path) -> dict[str, tuple[tuple[int, ...], str]] | None:
    """What safetensors itself finds; None where it refuses the file."""
    try:
        with safe_open(str(path), framework="np") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}
    except SafetensorError:
        return None


WHOLE = {"a": tensor(0, 24, [2, 3]), "b": tensor(24, 26, [1], "BF16"), "c": tensor(26, 26, [0, 7])}


def test_what_a_header_says(tmp_path: Path) -> None:
    found = read_header(write(tmp_path / "x", {"__metadata__": {"format": "pt"}, **WHOLE}, 26))
    assert {name: (entry.shape, entry.dtype, entry.num_bytes) for name, entry in found.items()} == {
        "a": ((2, 3), "F32", 24),
        "b": ((1,), "BF16", 2),
        "c": ((0, 7), "F32", 0),
    }


@pytest.mark.parametrize(
    ("header", "num_bytes", "message"),
    [
        ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, 12, "'b' overlaps the tensor before it"),
        ({"a": tensor(0, 8, [2]), "b": tensor(12, 20, [2])}, 20, "'b' leaves a gap before it"),
        ({"a": tensor(4, 12, [2])}, 12, "'a' leaves a gap before it"),
        ({"a": tensor(0, 8, [2])}, 9, "1 bytes after its last tensor"),
        ({"a": tensor(0, 1 << 62, [1 << 60])}, 8, "is truncated"),
        ({"a": tensor(0, 8, [3])}, 8, "8 bytes, its shape and dtype make 12"),
        ({"a": tensor(8, 0, [2])}, 8, "data_offsets is [8, 0]"),
        ({"a": tensor(0, 8, [-2])}, 8, "shape is [-2]"),
        ({"a": tensor(0, 8, [True, 2])}, 8, "shape is [True, 2]"),
        ({"a": tensor(0, 8, [1] * 8 + [2])}, 8, "expected up to 8 sizes"),
        ({"a": tensor(0, 8, [2], "F33")}, 8, "dtype is 'F33'"),
        ({"a": tensor(0, 8, [2], {})}, 8, "dtype is '{}'"),
        ({"a": [0]}, 0, "its entry in the header is not an object"),
        ({"__metadata__": {"format": 1}}, 0, "expected __metadata__ to be an object of strings"),
        ({"__metadata__": 0}, 0, "expected __metadata__ to be an object of strings"),
        ({"__metadata__": ["pt"]}, 0, "expected __metadata__ to be an object of strings"),
        ([], 0, "it holds an array, expected an object"),
        (b"[" * 100_000, 0, "nest"),
        (b'{"a": %s}' % (b"9" * 5000), 0, "does not fit into 64 bits"),
        (b"\xff\xfe{}", 0, "is not UTF-8"),
    ],
)
def test_hostile_headers_are_refused_by_name(tmp_path: Path, header: Any, num_bytes: int, message: str) -> None:
    path = write(tmp_path / "model.safetensors", header, num_bytes)
    with pytest.raises(MiniPLMError) as raised:
        read_header(path)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert len(str(raised.value)) < 600
    assert shapes_by_library(path) is None or message.startswith("expected up to"), "the library reads it"


def test_a_header_of_any_length_costs_nothing(tmp_path: Path) -> None:
    """The length is a number in the file; the file may be sparse and as large as it says."""
    path = tmp_path / "model.safetensors"
    for length in (1 << 40, (1 << 64) - 1, 17 << 20):
        path.write_bytes(struct.pack("<Q", length))
        os.truncate(path, min(8 + length, 1 << 42))
        tracemalloc.start()
        started = time.process_time()
        with pytest.raises(MiniPLMError, match=r"truncated within its header|the most that is accepted"):
            read_header(path)
        assert time.process_time() - started < 1
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["fifo", "device", "directory"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    {"fifo": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero"), "directory": os.mkdir}[kind](path)
    with pytest.raises(MiniPLMError, match=r"model\.safetensors is .*expected a regular file"):
        stored_tensors(tmp_path)


@pytest.mark.parametrize("name", ["/etc/passwd", "../model.safetensors", ""])
def test_an_index_names_files_of_its_own_directory_only(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(MiniPLMError, match="expected a path below"):
        stored_tensors(tmp_path)


def test_a_directory_with_two_sets_of_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", WHOLE, 26)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    with pytest.raises(MiniPLMError, match="remove the one that is out of date"):
        stored_tensors(tmp_path)


SIZES = st.one_of(st.integers(0, 9), st.sampled_from([-1, 2**31, 2**62, 2**64, 1.5, True, None, "2"]))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.one_of(st.sampled_from(["F32", "BF16", "U8"]), st.sampled_from([None, 3, "F4", {}])),
            "shape": st.one_of(st.lists(SIZES, max_size=4), SIZES),
            "data_offsets": st.lists(SIZES, max_size=3),
        },
    ),
    st.sampled_from([None, [], "x", 3]),
)
HEADERS = st.one_of(
    st.dictionaries(st.text(max_size=4), ENTRIES, max_size=4).map(lambda header: json.dumps(header).encode()),
    st.binary(max_size=60),
    st.binary(max_size=30).map(lambda middle: b'{"a":' + middle + b"}"),
)


@st.composite
def whole_headers(draw: st.DrawFn) -> tuple[bytes, int]:
    """Headers that are right, with at most one number moved."""
    header, stop = {}, 0
    for name in draw(
        st.lists(st.text(max_size=4).filter(lambda name: name != "__metadata__"), unique=True, max_size=4)
    ):
        dtype = draw(st.sampled_from(["F32", "BF16", "U8"]))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = DTYPE_BYTES[dtype]
        for axis in shape:
            size *= axis
        header[name] = tensor(stop, stop + size, shape, dtype)
        stop += size
    moved = draw(st.sampled_from([0, 0, 1, -1]))
    if header and moved:
        header[draw(st.sampled_from(sorted(header)))]["data_offsets"][draw(st.integers(0, 1))] += moved
    return json.dumps(header).encode(), stop + draw(st.sampled_from([0, 0, 0, 1]))


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    """A file that is right but for some bytes, or some values of its header, or the length of that."""
    text, num_bytes = draw(whole_headers())
    match draw(st.sampled_from(("bytes", "values", "values", "length"))):
        case "bytes":
            return draw(damaged_bytes(struct.pack("<Q", len(text)) + text + bytes(num_bytes)))
        case "values":
            text = draw(damaged_json(json.loads(text) | {"__metadata__": {"format": "pt"}}))
            return struct.pack("<Q", len(text)) + text + bytes(num_bytes)
        case _:
            return struct.pack("<Q", draw(NUMBERS) & ((1 << 64) - 1)) + text + bytes(num_bytes)


@fuzz("safetensors", 100)
@given(
    case=st.one_of(
        st.one_of(whole_headers(), st.tuples(HEADERS, st.integers(0, 40))).map(
            lambda case: struct.pack("<Q", len(case[0])) + case[0] + bytes(case[1])
        ),
        damaged_files(),
        damaged_files(),
        st.sampled_from(NO_FILES),
    ),
    cut=st.integers(0, 12),
)
def test_fuzz_safetensors_headers(tmp_path_factory: pytest.TempPathFactory, case: bytes | str, cut: int) -> None:
    """What is accepted is what the library finds; whatever else is one of our errors that names the file."""
    path = tmp_path_factory.getbasetemp() / "model.safetensors"
    if isinstance(case, str):
        put_no_file(path, case)
    else:
        put(path, case[: len(case) - max(0, cut - 6)])
    found: dict[str, Any] = {}
    error = refusal_of(lambda: found.update(read_header(path)))
    if error is not None:
        assert str(path) in str(error)
    else:
        assert {name: (entry.shape, entry.dtype) for name, entry in found.items()} == shapes_by_library(path)


def test_an_index_that_names_a_file_with_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one\ntwo.safetensors"}}))
    with pytest.raises(InputError) as raised:
        stored_tensors(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/one\\ntwo.safetensors is missing")


INDEX = {"metadata": {"total_size": 26}, "weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two"}}


@fuzz("safetensors", 60)
@given(data=st.data())
def test_fuzz_safetensors_index(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """The index that says which file has a tensor, and the files that it names."""
    directory = tmp_path_factory.getbasetemp() / "sharded"
    directory.mkdir(exist_ok=True)
    write(directory / "one.safetensors", WHOLE, 26)
    path = directory / "model.safetensors.index.json"
    put(path, data.draw(damaged_json(INDEX)))
    if data.draw(st.integers(0, 9)) == 9:
        put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
    error = refusal_of(lambda: stored_tensors(directory))
    assert error is None or str(directory) in str(error)


def test_the_bytes_of_a_model_are_those_of_its_parameters(tmp_path: Path) -> None:
    for name in ("llama-tied", "mixtral", "qwen3"):
        model = huggingface_models.random_model(name)
        model.save_pretrained(tmp_path / name)
        architecture = HuggingFaceModel.open(tmp_path / name).architecture
        assert model_bytes(architecture, 4) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_what_cannot_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError, match=r"not/yet cannot be written \(no space left"):
        require_space(tmp_path / "not" / "yet", free * 2)


def test_the_librarys_reason_is_kept(tmp_path: Path) -> None:
    message = str(unwritable(tmp_path, "I/O error: File too large"))
    assert message.startswith(f"{tmp_path} cannot be written")
    assert "File too large" in message
