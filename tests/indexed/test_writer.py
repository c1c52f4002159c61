import errno
import hashlib
import os
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.layout import optimal_dtype
from megatron_miniplm.indexed.prefix_files import how_to_replace, index_caches, stale_caches

GOLDEN_BIN = bytes.fromhex("0a00 0b00 0c00  1400  1e00 1f00")
GOLDEN_IDX = bytes.fromhex(
    "4d4d494449445800 00"  # MMIDIDX, two zeros
    "0100000000000000"  # version 1
    "08"  # uint16
    "0400000000000000"  # 4 sequences
    "0500000000000000"  # 5 document boundaries
    "03000000 00000000 01000000 02000000"  # lengths in tokens
    "0000000000000000 0600000000000000 0600000000000000 0800000000000000"  # pointers in bytes
    "0000000000000000 0100000000000000 0200000000000000 0300000000000000 0400000000000000"  # documents
)


def write_batch(writer, sequences):
    tokens = [token for sequence in sequences for token in sequence]
    writer.append(np.array(tokens, np.int64), np.array([len(sequence) for sequence in sequences], np.int64))


def write_corpus_and(prefix, last_step):
    """Writes six tokens, then calls `last_step(writer)` inside the block."""
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.append(np.arange(6), np.array([6]))
        last_step(writer)


def test_golden_bytes(tmp_path, literal_corpus):
    assert (tmp_path / "corpus.bin").read_bytes() == GOLDEN_BIN
    assert (tmp_path / "corpus.idx").read_bytes() == GOLDEN_IDX


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(["u1", "<u2", "<i4", "<i8"]))
def test_any_batching_reads_back_equal(data, dtype):
    token = st.integers(0, np.iinfo(dtype).max)
    sequences = data.draw(st.lists(st.lists(token, max_size=20), max_size=20))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sequences)), max_size=4)))
    with tempfile.TemporaryDirectory() as directory:
        with IndexedWriter(Path(directory) / "corpus", np.dtype(dtype)) as writer:
            for start, stop in zip([0, *cuts], [*cuts, len(sequences)], strict=True):
                write_batch(writer, sequences[start:stop])
            writer.close()
        corpus = IndexedCorpus.open(Path(directory) / "corpus")
        assert [corpus.sequence(index).tolist() for index in range(len(corpus))] == sequences
        assert corpus.token_dtype == np.dtype(dtype)
        assert corpus.num_tokens == writer.num_tokens == sum(map(len, sequences))
        assert corpus.boundaries_D.tolist() == list(range(len(sequences) + 1))


def test_close_returns_the_checksums_of_both_files(tmp_path):
    with IndexedWriter(tmp_path / "corpus", np.dtype("<i4")) as writer:
        writer.append(np.arange(5), np.array([2, 3]))
        files = writer.close()
    assert files == {
        name: {"bytes": len(content), "blake2b": hashlib.blake2b(content, digest_size=16).hexdigest()}
        for name in ("corpus.bin", "corpus.idx")
        for content in [(tmp_path / name).read_bytes()]
    }


def test_pointers_continue_across_index_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("megatron_miniplm.indexed.writer._INDEX_CHUNK", 2)
    with IndexedWriter(tmp_path / "corpus", np.dtype("<u2")) as writer:
        writer.append(np.arange(15), np.array([1, 2, 3, 4, 5]))
        writer.close()
    assert IndexedCorpus.open(tmp_path / "corpus").pointers_N.tolist() == [0, 2, 6, 12, 20]


def test_nothing_is_visible_before_close(tmp_path):
    with IndexedWriter(tmp_path / "corpus", np.dtype("<u2")) as writer:
        writer.append(np.arange(3), np.array([3]))
        assert all(path.name.startswith(".") for path in tmp_path.iterdir())
        writer.close()
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.bin", "corpus.idx"}


def test_an_error_leaves_nothing_behind(tmp_path):
    def break_tokenizer(writer):
        raise RuntimeError("tokenizer broke")

    with pytest.raises(RuntimeError, match="tokenizer broke"):
        write_corpus_and(tmp_path / "corpus", break_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_replacing_leaves_no_stale_index_or_manifest(tmp_path, literal_corpus, monkeypatch):
    """New data beside an old index of the same size would read as garbage."""
    (tmp_path / "corpus.manifest.json").write_text("{}")

    def full_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("megatron_miniplm.indexed.writer.write_index_chunks", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.bin", "corpus.idx"]


def test_what_a_killed_process_left_is_written_over(tmp_path):
    for name in (".corpus.bin.tmp", ".corpus.lengths.tmp", ".corpus.boundaries.tmp", ".corpus.idx.123.tmp"):
        (tmp_path / name).write_bytes(b"left")
    (tmp_path / ".corpus.manifest.json.123.tmp").write_bytes(b"left")
    (tmp_path / ".corpus2.idx.123.tmp").write_bytes(b"another's")
    assert IndexedWriter.was_killed(tmp_path / "corpus")
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert IndexedCorpus.open(tmp_path / "corpus").sequence(0).tolist() == list(range(6))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".corpus2.idx.123.tmp", "corpus.bin", "corpus.idx"]


@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_links_under_the_names_of_temporary_files_are_not_followed(tmp_path, make_link):
    (tmp_path / "victim").write_bytes(b"precious")
    for name in (".corpus.bin.tmp", ".corpus.lengths.tmp", ".corpus.boundaries.tmp"):
        make_link(tmp_path / "victim", tmp_path / name)
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "corpus.bin").is_symlink()
    assert IndexedCorpus.open(tmp_path / "corpus").sequence(0).tolist() == list(range(6))


def test_a_full_disk_is_said_of_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert caught.value.filename == str(tmp_path / "corpus.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_synced_once_does_not_lock_anyone_out(tmp_path, monkeypatch):
    """The `.bin` is in place by then, and would be taken for another tool's."""
    sync = os.fsync

    def fails_on_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fails_on_directories)
    with pytest.raises(OSError, match="Input/output error"):
        write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_of_what_was_there_before_is_removed(tmp_path):
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    cache = tmp_path / "corpus" / "cache" / "GPTDataset_indices"
    cache.mkdir(parents=True)
    for name in ("abc-GPTDataset-train-document_index.npy", "abc-GPTDataset-train-description.txt", "notes"):
        (cache / name).touch()
    assert index_caches(tmp_path / "corpus") == [cache]
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert [path.name for path in cache.iterdir()] == ["notes"]
    (cache / "notes").unlink()
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    assert index_caches(tmp_path / "corpus") == []
    assert not (tmp_path / "corpus").exists()


def test_a_cache_older_than_the_index_is_stale(tmp_path):
    write_corpus_and(tmp_path / "corpus", IndexedWriter.close)
    cache = tmp_path / "corpus" / "cache" / "GPTDataset_indices"
    assert stale_caches(tmp_path / "corpus") == index_caches(tmp_path / "corpus") == []
    cache.mkdir(parents=True)
    (cache / "abc-GPTDataset-train-document_index.npy").touch()
    assert stale_caches(tmp_path / "corpus") == []
    written = (tmp_path / "corpus.idx").stat().st_mtime
    os.utime(cache / "abc-GPTDataset-train-document_index.npy", (written - 1, written - 1))
    assert stale_caches(tmp_path / "corpus") == [cache]
    assert str(cache.parent) in how_to_replace(tmp_path / "corpus", "--output-prefix")


def test_two_processes_do_not_write_one_prefix(tmp_path):
    with IndexedWriter(tmp_path / "corpus", np.dtype("<u2")) as writer:
        with pytest.raises(InputError, match="corpus is being written by another process: wait for it, or stop it"):
            IndexedWriter(tmp_path / "corpus", np.dtype("<u2"))
        writer.append(np.arange(6), np.array([6]))
        writer.close()
    assert IndexedCorpus.open(tmp_path / "corpus").num_tokens == 6


@pytest.mark.parametrize(("vocab_size", "dtype"), [(65499, "<u2"), (65500, "<i4")])
def test_optimal_dtype(vocab_size, dtype):
    assert optimal_dtype(vocab_size) == np.dtype(dtype)
