import os
import tracemalloc

import numpy as np
import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts.npy_files import open_array
from megatron_miniplm.errors import CorruptArtifactError

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


def test_what_cannot_be_opened(tmp_path):
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
