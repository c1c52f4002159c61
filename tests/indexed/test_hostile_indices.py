"""An `.idx` with anything in it: opened as what it says, or refused, in bounded memory."""

import resource
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from damage import NO_FILES, damaged_bytes, damaged_indices, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter

COUNTS = (0, 1, 2**31, 2**32 + 3, 2**40, 2**61, 2**63 - 1, 2**63, 2**64 - 1)


def write(prefix: Path) -> bytes:
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.append(np.arange(10), np.array([3, 0, 5, 2]))
        writer.close()
    return prefix.with_suffix(".idx").read_bytes()


def read_all(prefix: Path) -> None:
    corpus = IndexedCorpus.open(prefix)
    for sequence in range(len(corpus)):
        corpus.sequence(sequence)
    corpus.fingerprint()


def test_huge_counts(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "corpus"))
    for num_sequences, num_boundaries in product(COUNTS, COUNTS):
        content[18:34] = struct.pack("<QQ", num_sequences, num_boundaries)
        (tmp_path / "corpus.idx").write_bytes(content)
        with pytest.raises(CorruptArtifactError, match=r"corpus\.idx"):
            read_all(tmp_path / "corpus")


def test_counts_of_a_sparse_file_take_no_memory(tmp_path: Path) -> None:
    """Zeros on no disk space, which are lengths and pointers of empty sequences; only the boundaries are wrong."""
    num_sequences = 2 * 10**7
    write(tmp_path / "corpus")
    (tmp_path / "corpus.bin").write_bytes(b"")
    header = struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, 8, num_sequences, 2)
    with open(tmp_path / "corpus.idx", "wb") as stream:
        stream.write(header)
        stream.truncate(34 + 12 * num_sequences + 16)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CorruptArtifactError, match="the document boundaries run from 0 to 0, expected 0 to 20000000"):
        IndexedCorpus.open(tmp_path / "corpus")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000, "kilobytes"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("fuzzed") / "pristine"
    write(prefix)
    return prefix


@fuzz("idx", 150)
@given(data=st.data())
def test_fuzz_idx(pristine: Path, data: st.DataObject) -> None:
    """Bytes or numbers of any kind, in the index or the data, or no files at all."""
    prefix = pristine.with_name("corpus")
    for suffix in (".bin", ".idx"):
        put(prefix.with_suffix(suffix), pristine.with_suffix(suffix).read_bytes())
    path = prefix.with_suffix(data.draw(st.sampled_from((".idx", ".idx", ".idx", ".bin"))))
    match data.draw(st.sampled_from(("bytes", "numbers", "numbers", "no file"))):
        case "bytes":
            path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
        case "numbers":
            index = prefix.with_suffix(".idx")
            index.write_bytes(data.draw(damaged_indices(index.read_bytes())))
        case "no file":
            put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
    error = refusal_of(lambda: read_all(prefix))
    assert error is None or str(prefix) in str(error)
