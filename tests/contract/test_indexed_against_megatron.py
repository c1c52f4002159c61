"""Our `.bin/.idx` against the writer and the reader of the installed megatron-core."""

import numpy as np
import pytest
import torch
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed.layout import TOKEN_DTYPES, optimal_dtype
from megatron_miniplm.reports.inspection import find_faults

LENGTHS = [5, 0, 1, 300, 17, 0, 4096]
DTYPES = [np.uint16, np.int32]


@pytest.fixture
def sequences():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 65499, length) for length in LENGTHS]


def write_with_megatron(prefix, sequences, dtype, sequences_per_document=1):
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for start in range(0, len(sequences), sequences_per_document):
        document = sequences[start : start + sequences_per_document]
        builder.add_document(np.concatenate(document), [len(sequence) for sequence in document])
    builder.finalize(f"{prefix}.idx")


def write_with_ours(prefix, sequences, dtype):
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        writer.append(np.concatenate(sequences), np.array([len(sequence) for sequence in sequences]))
        writer.close()
    return IndexedCorpus.open(prefix)


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bytes_as_the_builder(tmp_path, sequences, dtype):
    write_with_megatron(tmp_path / "megatron", sequences, dtype)
    write_with_ours(tmp_path / "ours", sequences, dtype)
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"megatron.{suffix}").read_bytes()


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_megatron_reads_our_corpora_and_views(tmp_path, sequences, dtype, mmap):
    corpus = write_with_ours(tmp_path / "ours", sequences, dtype)
    view = IndexedCorpus.open(
        write_view(corpus, np.array([6, 3, 3, 0]), tmp_path / "views", label="refined", settings={})
    )
    for ours in (corpus, view):
        theirs = IndexedDataset(str(ours.prefix), mmap=mmap)
        assert len(theirs) == len(ours)
        assert np.array_equal(theirs.document_indices, ours.boundaries_D)
        for index in range(len(ours)):
            assert np.array_equal(theirs.get(index), ours.sequence(index))
            assert theirs.get(index).dtype == ours.token_dtype
            offset = len(ours.sequence(index)) // 2
            assert np.array_equal(theirs.get(index, offset=offset), ours.sequence(index)[offset:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_we_read_what_megatron_writes(tmp_path, sequences, dtype):
    write_with_megatron(tmp_path / "megatron", sequences, dtype, sequences_per_document=3)
    corpus = IndexedCorpus.open(tmp_path / "megatron")
    assert corpus.boundaries_D.tolist() == [0, 3, 6, 7]
    assert [corpus.sequence(index).tolist() for index in range(len(corpus))] == [s.tolist() for s in sequences]
    assert find_faults(tmp_path / "megatron") == []


def test_we_read_multimodal_indices(tmp_path):
    builder = IndexedDatasetBuilder(f"{tmp_path}/megatron.bin", multimodal=True)
    builder.add_item(torch.arange(3), mode=1)
    builder.add_item(torch.arange(2))
    builder.end_document()
    builder.finalize(f"{tmp_path}/megatron.idx")
    assert IndexedCorpus.open(tmp_path / "megatron").sequence(1).tolist() == [0, 1]


def test_a_slice_of_a_view_is_wrong_in_megatron(tmp_path, sequences):
    """The trap that docs/formats.md warns of; if this ever fails, the warning can go."""
    corpus = write_with_ours(tmp_path / "ours", sequences, np.uint16)
    prefix = write_view(corpus, np.array([0, 4]), tmp_path / "views", label="refined", settings={})
    dataset = IndexedDataset(str(prefix))  # its arrays are unmapped with it, so it must outlive them
    _, second = dataset[0:2]
    assert not np.array_equal(second, sequences[4])


def test_merging_a_view_is_wrong_in_megatron(tmp_path, sequences):
    """The other trap: `add_index`, on which the merge tool stands, copies the data and drops the pointers."""
    corpus = write_with_ours(tmp_path / "ours", sequences, np.uint16)
    prefix = write_view(corpus, np.array([4, 0]), tmp_path / "views", label="refined", settings={})
    builder = IndexedDatasetBuilder(f"{tmp_path}/merged.bin", dtype=np.uint16)
    builder.add_index(str(prefix))
    builder.finalize(f"{tmp_path}/merged.idx")
    dataset = IndexedDataset(f"{tmp_path}/merged")
    assert not np.array_equal(dataset.get(0), sequences[4])
    (fault,) = find_faults(tmp_path / "merged")
    assert "the last sequence of its index ends at" in fault


def test_dtype_codes_and_choice():
    assert {code: np.dtype(DType.dtype_from_code(code)) for code in TOKEN_DTYPES} == TOKEN_DTYPES
    for vocab_size in (1, 65499, 65500, 1 << 20):
        assert np.dtype(DType.optimal_dtype(vocab_size)) == optimal_dtype(vocab_size)
