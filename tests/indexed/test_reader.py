import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from megatron_miniplm.artifacts import Manifest
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.layout import HEADER

DTYPE_CODE_OFFSET = 17
LENGTHS_OFFSET = HEADER.size
POINTERS_OFFSET = LENGTHS_OFFSET + 4 * 4
BOUNDARIES_OFFSET = POINTERS_OFFSET + 4 * 8


def patch(path, offset, content):
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


def assert_refused(prefix, message):
    with pytest.raises(CorruptArtifactError, match=re.escape(message)):
        IndexedCorpus.open(prefix)


def test_literal_corpus(literal_corpus):
    assert len(literal_corpus) == literal_corpus.num_documents == 4
    assert literal_corpus.num_tokens == 6
    assert literal_corpus.lengths_N.tolist() == [3, 0, 1, 2]
    assert literal_corpus.pointers_N.tolist() == [0, 6, 6, 8]
    assert literal_corpus.sequence(3).tolist() == [30, 31]
    assert not literal_corpus.is_view


def test_sequences_are_read_only(literal_corpus):
    with pytest.raises(ValueError, match="read-only"):
        literal_corpus.sequence(0)[0] = 1


def test_empty_corpus(write_corpus):
    corpus = write_corpus([])
    assert (len(corpus), corpus.num_documents, corpus.num_tokens) == (0, 0, 0)


def test_only_empty_sequences(write_corpus):
    assert write_corpus([[], []]).sequence(1).tolist() == []


def test_sequence_modes_of_multimodal_data_are_accepted(tmp_path, literal_corpus):
    index = tmp_path / "corpus.idx"
    index.write_bytes(index.read_bytes() + bytes(4))
    assert IndexedCorpus.open(tmp_path / "corpus").sequence(2).tolist() == [20]


@pytest.mark.parametrize("suffix", ["bin", "idx"])
def test_missing_file(tmp_path, literal_corpus, suffix):
    (tmp_path / f"corpus.{suffix}").unlink()
    with pytest.raises(InputError, match=rf"corpus\.{suffix} does not exist: give the prefix of a \.bin/\.idx pair"):
        IndexedCorpus.open(tmp_path / "corpus")


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_fifo_is_refused_without_waiting(tmp_path, literal_corpus, suffix):
    path = literal_corpus.prefix.with_name(literal_corpus.prefix.name + suffix)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(MiniPLMError, match=re.escape(path.name)):
        IndexedCorpus.open(literal_corpus.prefix).fingerprint()


def test_truncated_bin(tmp_path, literal_corpus):
    data = tmp_path / "corpus.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert_refused(
        tmp_path / "corpus",
        "corpus.idx: sequence 3 has 2 tokens of 2 bytes at byte 8, but corpus.bin has 11 bytes: "
        "the .bin is truncated or belongs to another .idx",
    )


@pytest.mark.parametrize("kept_bytes", [LENGTHS_OFFSET, POINTERS_OFFSET, BOUNDARIES_OFFSET, BOUNDARIES_OFFSET + 39])
def test_truncated_idx(tmp_path, literal_corpus, kept_bytes):
    index = tmp_path / "corpus.idx"
    index.write_bytes(index.read_bytes()[:kept_bytes])
    assert_refused(
        tmp_path / "corpus",
        f"corpus.idx has {kept_bytes} bytes, its header (4 sequences, 5 document boundaries) asks for 122",
    )


def test_idx_shorter_than_its_header(tmp_path, literal_corpus):
    (tmp_path / "corpus.idx").write_bytes(b"MMIDIDX\0\0")
    assert_refused(tmp_path / "corpus", "corpus.idx has 9 bytes, too few for an index")


@pytest.mark.parametrize(
    ("offset", "content", "message"),
    [
        (0, b"X", "is not a Megatron index (magic b'XMIDIDX\\x00\\x00', version 1)"),
        (9, b"\x02", "is not a Megatron index (magic b'MMIDIDX\\x00\\x00', version 2)"),
        (DTYPE_CODE_OFFSET, b"\x09", "token dtype code 9 is not one of [1, 2, 3, 4, 5, 6, 7, 8]"),
        (DTYPE_CODE_OFFSET, b"\x07", "the data type is float32, tokens must be integers"),
        (LENGTHS_OFFSET, struct.pack("<i", -3), "sequence 0 has -3 tokens of 2 bytes at byte 0"),
        (POINTERS_OFFSET + 24, struct.pack("<q", 10), "sequence 3 has 2 tokens of 2 bytes at byte 10"),
        (POINTERS_OFFSET + 24, struct.pack("<q", 7), "sequence 3 has 2 tokens of 2 bytes at byte 7"),
        (POINTERS_OFFSET, struct.pack("<q", -2), "sequence 0 has 3 tokens of 2 bytes at byte -2"),
        (
            POINTERS_OFFSET,
            struct.pack("<q", 2**63 - 2),
            "sequence 0 has 3 tokens of 2 bytes at byte 9223372036854775806",
        ),
        (BOUNDARIES_OFFSET, struct.pack("<q", 1), "the document boundaries run from 1 to 4, expected 0 to 4"),
        (BOUNDARIES_OFFSET + 32, struct.pack("<q", 3), "the document boundaries run from 0 to 3, expected 0 to 4"),
        (BOUNDARIES_OFFSET + 16, struct.pack("<q", 0), "document 1 starts at sequence 1 and ends before it, at 0"),
    ],
)
def test_damaged_idx(tmp_path, literal_corpus, offset, content, message):
    patch(tmp_path / "corpus.idx", offset, content)
    assert_refused(tmp_path / "corpus", message)


def test_no_document_boundaries(tmp_path):
    (tmp_path / "corpus.bin").write_bytes(b"")
    (tmp_path / "corpus.idx").write_bytes(HEADER.pack(b"MMIDIDX\0\0", 1, 8, 0, 0))
    assert_refused(tmp_path / "corpus", "has no document boundaries, expected at least one")


def test_empty_documents_are_allowed(tmp_path, literal_corpus):
    """Megatron's preprocessor repeats a boundary for a text without tokens."""
    patch(tmp_path / "corpus.idx", BOUNDARIES_OFFSET + 16, struct.pack("<q", 1))
    assert IndexedCorpus.open(tmp_path / "corpus").boundaries_D.tolist() == [0, 1, 1, 3, 4]


def test_faults_are_found_in_every_chunk(tmp_path, literal_corpus, monkeypatch):
    monkeypatch.setattr("megatron_miniplm.indexed.reader._CHECK_CHUNK", 1)
    IndexedCorpus.open(tmp_path / "corpus")
    patch(tmp_path / "corpus.idx", POINTERS_OFFSET + 16, struct.pack("<q", 100))
    assert_refused(tmp_path / "corpus", "sequence 2 has 1 tokens")


def test_fingerprint_follows_content_not_path(write_corpus):
    first, copy, other = write_corpus(name="a"), write_corpus(name="b"), write_corpus([[10, 11, 13]], name="c")
    assert first.fingerprint() == copy.fingerprint()
    assert first.fingerprint() != other.fingerprint()


def test_fingerprint_golden(literal_corpus):
    assert literal_corpus.fingerprint() == "ce51e8ebc0834f75faa5404552e56c30"


def test_an_index_of_another_dtype_is_refused(tmp_path: Path) -> None:
    """Declared as uint16, int32 data would read as twice as many sequences' worth of interleaved zeros."""
    with IndexedWriter(tmp_path / "pile", np.dtype("<i4")) as writer:
        writer.append(np.arange(5), np.array([2, 3]))
        writer.close()
    with open(tmp_path / "pile.idx", "r+b") as stream:
        stream.seek(17)
        stream.write(b"\x08")
    with pytest.raises(CorruptArtifactError, match=r"its token dtype \(uint16\) is not that of the data"):
        IndexedCorpus.open(tmp_path / "pile")


def test_a_changed_corpus_does_not_pass_for_the_one_that_was_written(tmp_path: Path) -> None:
    prefix = tmp_path / "pile"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.append(np.arange(5), np.array([2, 3]))
        writer.close()
    corpus = IndexedCorpus.open(prefix)
    assert corpus.verified_fingerprint() == corpus.fingerprint(), "without a manifest there is nothing to compare"
    Manifest(kind="corpus", fingerprint="00" * 16, counts={}).write(prefix)
    with pytest.raises(CorruptArtifactError, match="its manifest says 00000000: its files have changed"):
        corpus.verified_fingerprint()
