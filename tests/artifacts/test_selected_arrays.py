"""Arrays of a selection against files that have changed under them."""

import os
import pickle
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts.atomic import write_array
from megatron_miniplm.artifacts.selected_arrays import (
    BLOCK_SEQUENCES,
    INDEX_DTYPE,
    BlockChecksums,
    CheckedArray,
    KeptLookup,
)
from megatron_miniplm.errors import CorruptArtifactError, MiniPLMError

NUM_VALUES = 2 * BLOCK_SEQUENCES + 100
HEADER_BYTES = 128


@pytest.fixture
def values_K() -> np.ndarray:
    return np.arange(NUM_VALUES, dtype=INDEX_DTYPE) * 3


@pytest.fixture
def array(tmp_path: Path, values_K: np.ndarray) -> CheckedArray:
    write_array(tmp_path / "indices.npy", values_K)
    checksums = BlockChecksums(INDEX_DTYPE)
    checksums.add(values_K)
    return CheckedArray(tmp_path / "indices.npy", INDEX_DTYPE, NUM_VALUES, checksums.finished())


def flip_bit(path: Path, value: int) -> None:
    """Flip one bit of a value of the array."""
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + value * INDEX_DTYPE.itemsize] ^= 4
    path.write_bytes(data)


@given(st.lists(st.integers(0, BLOCK_SEQUENCES + 5), max_size=6))
def test_checksums_do_not_depend_on_the_pieces(sizes: list[int]) -> None:
    values_K = np.arange(sum(sizes), dtype="<f4")
    checksums = BlockChecksums(values_K.dtype)
    for piece_K in np.split(values_K, np.cumsum(sizes)):
        checksums.add(piece_K)
    blocks = [values_K[start : start + BLOCK_SEQUENCES] for start in range(0, len(values_K), BLOCK_SEQUENCES)]
    assert checksums.finished().tolist() == [zlib.crc32(block_K.tobytes()) for block_K in blocks]


def test_what_is_read_is_what_was_written(array: CheckedArray, values_K: np.ndarray) -> None:
    assert np.array_equal(array.whole(), values_K)
    assert np.array_equal(array.read(5, BLOCK_SEQUENCES + 7), values_K[5 : BLOCK_SEQUENCES + 7])
    sequences = values_K[[0, NUM_VALUES - 1, BLOCK_SEQUENCES]]
    for found in KeptLookup(array, array, array).find(sequences):
        assert np.array_equal(found, sequences)


@pytest.mark.parametrize("value", [0, BLOCK_SEQUENCES, NUM_VALUES - 1])
def test_a_flipped_bit_is_found_where_it_is_read(array: CheckedArray, values_K: np.ndarray, value: int) -> None:
    flip_bit(array.path, value)
    block = value // BLOCK_SEQUENCES
    other = (block + 1) % 3 * BLOCK_SEQUENCES
    lookup = KeptLookup(array, array, array)
    assert lookup.find(values_K[[other]])[0] == values_K[other], "blocks that are whole can be read"
    for read in (array.whole, lambda: array.read(value, value + 1), lambda: array.check(block)):
        with pytest.raises(CorruptArtifactError, match=rf"entries {block * BLOCK_SEQUENCES} to \d+ do not match"):
            read()


def test_a_data_worker_verifies_for_itself(array: CheckedArray) -> None:
    array.whole()
    lookup = KeptLookup(array, array, array)
    lookup.find(array.whole()[:1])
    pickled = pickle.dumps(lookup)
    assert len(pickled) < NUM_VALUES, "without the values"
    flip_bit(array.path, 0)
    with pytest.raises(CorruptArtifactError):
        pickle.loads(pickled).find(np.array([3]))


@pytest.mark.parametrize("kind", ["missing", "longer", "shorter", "header", "FIFO", "directory", "device"])
def test_another_file_in_its_place(array: CheckedArray, kind: str) -> None:
    data = array.path.read_bytes()
    array.path.unlink()
    if kind in ("longer", "shorter"):
        array.path.write_bytes(data + b"\0" if kind == "longer" else data[:-1])
    elif kind == "header":
        array.path.write_bytes(data.replace(b"<i8", b"<f8", 1))
    elif kind == "FIFO":
        os.mkfifo(array.path)
    elif kind == "directory":
        array.path.mkdir()
    elif kind == "device":
        array.path.symlink_to("/dev/zero")
    with pytest.raises(MiniPLMError, match=r"indices\.npy"):
        array.whole()


def test_an_empty_array(tmp_path: Path) -> None:
    write_array(tmp_path / "none.npy", np.zeros(0, INDEX_DTYPE))
    array = CheckedArray(tmp_path / "none.npy", INDEX_DTYPE, 0, np.zeros(0, np.uint32))
    assert len(array.whole()) == len(array.read(0, 0)) == 0
