import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from damage import JSON_VALUES, damaged_json
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts.reading import MAX_DEPTH, open_array, open_regular, parse_json, path_below, read_json
from megatron_miniplm.errors import CorruptArtifactError, InputError

VALUE = {"a": [1, -2.5, None, True, "é \U0001f600 \\u0041"], "b": {"c": (1 << 64) - 1, "d": -(1 << 63)}}


def test_json_is_read(tmp_path):
    (tmp_path / "f.json").write_text(json.dumps(VALUE), encoding="utf-8")
    assert read_json(tmp_path / "f.json", what="file") == VALUE


def test_the_deepest_value(tmp_path):
    def nested(depth: int) -> bytes:
        return b"[" * depth + b"1" + b"]" * depth

    deepest = parse_json(nested(MAX_DEPTH), where="x", what="file", expected=list)
    assert deepest == json.loads(nested(MAX_DEPTH))
    with pytest.raises(CorruptArtifactError, match=f"nest more than {MAX_DEPTH} deep"):
        parse_json(nested(MAX_DEPTH + 1), where="x", what="file", expected=list)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"a": NaN}', "NaN is not a number in JSON"),
        (b'{"a": -Infinity}', "-Infinity is not a number in JSON"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        (b'{"a": %s}' % (b"9" * 5000), r"the integer 9{40}\.\.\. does not fit into 64 bits"),
        (b'{"a": 18446744073709551616}', "does not fit into 64 bits"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\udc00": 1}', "half of a surrogate pair"),
        (b"[" * 100_000, "values nest too deep"),
        (b"[]", "it holds an array, expected an object"),
        (b"null", "it holds null, expected an object"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_file(tmp_path, data, reason):
    (tmp_path / "f.json").write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=rf"f\.json is not a valid file \(.*{reason}.*\): make it again$"):
        read_json(tmp_path / "f.json", what="file")


def test_true_is_not_an_integer():
    with pytest.raises(CorruptArtifactError, match="it holds a boolean, expected an integer"):
        parse_json(b"true", where="x", what="file", expected=int)


def test_no_more_is_read_than_allowed(tmp_path):
    with (tmp_path / "f.json").open("wb") as stream:
        stream.truncate(1 << 40)
    tracemalloc.start()
    with pytest.raises(CorruptArtifactError, match="is larger than 64,000,000 bytes, too large for a file"):
        read_json(tmp_path / "f.json", what="file", max_bytes=64_000_000)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_what_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("none", "No such file or directory"), ("fifo", "is a FIFO"), (".", "is a directory")):
        with pytest.raises(CorruptArtifactError, match=f"cannot be read as the file .*{reason}.*: make it again"):
            read_json(tmp_path / name, what="file")


@fuzz("manifest", 150)
@given(
    st.one_of(st.binary(max_size=60), JSON_VALUES.map(lambda value: json.dumps(value).encode()), damaged_json(VALUE))
)
def test_fuzz_manifest_json_is_a_value_that_can_be_written_again_or_one_error(data):
    try:
        value = parse_json(data, where="x", what="file", expected=object)
    except CorruptArtifactError:
        return
    again = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    assert parse_json(again, where="x", what="file", expected=object) == value


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"abc"
            assert os.get_blocking(stream.fileno())


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a FIFO"), ("zero", "a character device"), ("", "a directory")):
        with pytest.raises(InputError, match=f"is {kind}, expected a regular file"):
            open_regular(tmp_path / name)


def test_a_fifo_that_takes_the_place_of_a_file_is_refused_without_waiting(tmp_path, monkeypatch):
    """What was looked at need not be what is opened."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    looked_at = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: looked_at)
    with pytest.raises(InputError, match="is a FIFO"):
        open_regular(tmp_path / "fifo")


def test_a_missing_file_keeps_its_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(InputError, match="cannot be a path"):
        open_regular(tmp_path / name)


@pytest.mark.parametrize("name", ["blocks/1.npy", "./a", "a..b"])
def test_names_below_the_artifact(name):
    assert path_below(Path("store"), name, named_by=Path("store/manifest.json")) == Path("store") / name


@pytest.mark.parametrize("name", ["/dev/zero", "../other", "a/../../b", "", ".", "a\0", 7, None])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json names the file .*expected a path below store"):
        path_below(Path("store"), name, named_by=Path("store/manifest.json"))


INDEX = np.dtype("<i8")


@pytest.mark.parametrize("array", [np.arange(5), np.zeros((2, 3), INDEX), np.zeros(0, INDEX), np.zeros((0, 2), INDEX)])
def test_arrays_are_mapped(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    mapped = open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=array.shape)
    np.testing.assert_array_equal(mapped, array)
    assert mapped.dtype == INDEX
    assert isinstance(mapped, np.memmap) == bool(array.size)
    open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=(None,) * array.ndim)


def test_version_2_of_the_format(tmp_path):
    with (tmp_path / "a.npy").open("wb") as stream:
        np.lib.format.write_array(stream, np.arange(3), version=(2, 0))
    assert open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=(3,)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.arange(4), r"it has shape \(4,\), expected \(3,\)"),
        (np.zeros((3, 1), INDEX), r"it has shape \(3, 1\), expected \(3,\)"),
        (np.zeros(3, "<i4"), "it holds values of int32, expected int64"),
        (np.zeros(3, ">i8"), "it holds values of >i8, expected int64"),
        (np.array([{}, 1, 2], object), "it holds values of object, expected int64"),
    ],
)
def test_another_array(tmp_path, array, reason):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(CorruptArtifactError, match=rf"a\.npy does not hold the indices \({reason}\): make it again"):
        open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=(3,))


def test_fortran_order(tmp_path):
    np.save(tmp_path / "a.npy", np.asfortranarray(np.zeros((2, 3), INDEX)))
    with pytest.raises(CorruptArtifactError, match="Fortran order"):
        open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=(2, 3))


@pytest.mark.parametrize("change_bytes", [-1, 1])
def test_a_file_that_is_cut_or_too_long(tmp_path, change_bytes):
    np.save(tmp_path / "a.npy", np.arange(3))
    os.truncate(tmp_path / "a.npy", 152 + change_bytes)
    with pytest.raises(CorruptArtifactError, match=rf"it has {152 + change_bytes} bytes, expected 152"):
        open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=(3,))


def _header(text: bytes, length: int | None = None) -> bytes:
    return b"\x93NUMPY\x02\x00" + (len(text) if length is None else length).to_bytes(4, "little") + text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x07\x00" + bytes(100),
        _header(b"(" * 4000),
        _header(b"", 0xFFFFFFFF),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }\n"[:-9]),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (-3,), }\n"),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (True,), }\n") + bytes(8),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (%s,), }\n" % (b"9" * 40)),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (0, %s,), }\n" % (b"9" * 40)),
        _header(b"{'descr': [('a', '<i8', (9999999999,))], 'fortran_order': False, 'shape': (3,), }\n"),
        _header(b"{'descr': '<i8', 'fortran_order': False, 'shape': (3,), 'descr': {}}\n"),
        _header(b"\x00" * 50),
    ],
)
@pytest.mark.parametrize("shape", [(None,), (None, None)])
def test_damaged_headers(tmp_path, data, shape):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=r"a\.npy does not hold the indices \(.*\): make it again$"):
        open_array(tmp_path / "a.npy", what="indices", dtype=INDEX, shape=shape)


def test_an_array_that_cannot_be_opened(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (("none", "No such file or directory"), ("fifo", "is a FIFO")):
        with pytest.raises(CorruptArtifactError, match=reason):
            open_array(tmp_path / name, what="indices", dtype=INDEX, shape=(None,))


@fuzz("npy", 100)
@given(data=st.data())
def test_fuzz_npy_a_changed_file_is_refused_or_has_the_right_shape(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "fuzzed.npy"
    np.save(path, np.arange(3))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, 130))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, 160))])
    tracemalloc.start()
    try:
        array = open_array(path, what="indices", dtype=INDEX, shape=(None,))
        assert array.nbytes <= 24
    except CorruptArtifactError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20
