import os
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed import view as view_module
from megatron_miniplm.indexed.writer import IndexedWriter, write_index


def sequences_of(corpus):
    return [corpus.sequence(index).tolist() for index in range(len(corpus))]


def make_view(source, sequences, directory, label="refined"):
    sequences_K = np.asarray(sequences, np.int64) if isinstance(sequences, list) else sequences
    return IndexedCorpus.open(write_view(source, sequences_K, directory, label=label, settings={"fraction": 0.5}))


@pytest.mark.parametrize("sequences", [[0, 2], [3, 1, 0], [2, 2, 2], [], [0, 1, 2, 3]])
def test_selected_sequences_in_the_given_order(tmp_path, literal_corpus, sequences):
    view = make_view(literal_corpus, sequences, tmp_path / "views")
    assert sequences_of(view) == [literal_corpus.sequence(index).tolist() for index in sequences]
    assert view.is_view


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=st.lists(st.integers(0, 3), max_size=12))
def test_any_selection_reads_back_equal(tmp_path, write_corpus, sequences):
    source = write_corpus()
    view = make_view(source, sequences, tmp_path / "views")
    assert sequences_of(view) == [source.sequence(index).tolist() for index in sequences]


def test_manifest_names_the_source(tmp_path, literal_corpus):
    view = make_view(literal_corpus, [0, 3], tmp_path / "views")
    manifest = load_manifest(view.prefix)
    (source,) = manifest.inputs
    assert (source.role, source.path, source.fingerprint) == ("source", "../corpus", literal_corpus.fingerprint())
    assert manifest.kind == "view"
    assert manifest.fingerprint == view.fingerprint()
    assert manifest.counts == {"num_sequences": 2, "num_documents": 2, "num_tokens": 5}
    assert manifest.settings == {"label": "refined", "fraction": 0.5}
    assert list(manifest.files) == [f"{view.prefix.name}.idx"]


def test_data_is_a_relative_link_to_the_original(tmp_path, literal_corpus):
    view = make_view(literal_corpus, [0, 3], tmp_path / "views")
    of_view = make_view(view, [1], tmp_path / "deeper" / "still")
    assert os.readlink(f"{view.prefix}.bin") == "../corpus.bin"
    assert os.readlink(f"{of_view.prefix}.bin") == "../../corpus.bin"
    assert sequences_of(of_view) == [[30, 31]]


def test_a_view_of_a_view_outlives_it(tmp_path, literal_corpus):
    view = make_view(literal_corpus, [0, 3], tmp_path / "views")
    of_view = make_view(view, [1], tmp_path / "deeper")
    shutil.rmtree(tmp_path / "views")
    assert sequences_of(IndexedCorpus.open(of_view.prefix)) == [[30, 31]]


def test_the_whole_tree_can_move(tmp_path, write_corpus):
    view = make_view(write_corpus(name="run/corpus"), [2, 3], tmp_path / "run" / "views")
    (tmp_path / "run").rename(tmp_path / "moved")
    assert sequences_of(IndexedCorpus.open(tmp_path / "moved" / "views" / view.prefix.name)) == [[20], [30, 31]]


def test_missing_data_is_named(tmp_path, literal_corpus):
    view = make_view(literal_corpus, [0], tmp_path / "views")
    (tmp_path / "corpus.bin").unlink()
    with pytest.raises(InputError, match=r"\.bin links to \.\./corpus\.bin, which is not there: restore the data"):
        IndexedCorpus.open(view.prefix)


def test_name_follows_content(tmp_path, write_corpus):
    source = write_corpus(name="pile")
    first = make_view(source, [0, 2], tmp_path / "views").prefix
    assert first.name.startswith("pile_refined-")
    assert make_view(source, [0, 2], tmp_path / "views").prefix == first
    assert make_view(source, [2, 0], tmp_path / "views").prefix != first
    other_source = write_corpus([[9], [8], [7]], name="other/pile")
    assert make_view(other_source, [0, 2], tmp_path / "views").prefix != first


@pytest.mark.parametrize("dtype", ["<u4", "<i4", "<u8", "<i8"])
def test_the_dtype_of_the_selection_does_not_matter(tmp_path, write_corpus, dtype):
    source = with_documents(write_corpus, [0, 4])
    view = make_view(source, np.array([3, 1, 2], dtype), tmp_path / "views")
    assert view.prefix == make_view(source, [3, 1, 2], tmp_path / "views").prefix
    assert view.boundaries_D.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("sequences", "boundaries"),
    [
        ([0, 1, 2, 3], [0, 2, 4]),  # both documents whole
        ([1, 2], [0, 1, 2]),  # the end of one, the start of the next
        ([2, 3], [0, 2]),
        ([0, 0], [0, 1, 2]),  # a repetition starts a document
        ([1, 0], [0, 1, 2]),  # so does a step back
        ([], [0]),
    ],
)
def test_documents_are_runs_of_one_source_document(tmp_path, write_corpus, sequences, boundaries):
    source = with_documents(write_corpus, [0, 2, 4])
    assert make_view(source, sequences, tmp_path / "views").boundaries_D.tolist() == boundaries


def test_empty_documents_of_the_source_are_dropped(tmp_path, write_corpus):
    source = with_documents(write_corpus, [0, 0, 2, 2, 4])
    assert make_view(source, [0, 1, 2, 3], tmp_path / "views").boundaries_D.tolist() == [0, 2, 4]


@st.composite
def documents_and_selections(draw):
    """Numbers of sequences of each document, and indices of sequences."""
    documents = draw(st.lists(st.integers(0, 4), max_size=12))
    one_each = draw(st.booleans())
    documents = [min(number, 1) for number in documents] if one_each else documents
    index = st.integers(0, max(0, sum(documents) - 1))
    chosen = draw(st.lists(index, max_size=30)) if sum(documents) else []
    return documents, sorted(chosen) if draw(st.booleans()) else chosen


@settings(max_examples=100)
@given(documents_and_selections(), st.integers(1, 7), st.sampled_from([0, 1, 8]))
def test_chunks_are_those_of_the_plain_formula(tmp_path_factory, drawn, chunk, span_factor):
    documents, chosen = drawn
    directory = tmp_path_factory.mktemp("view")
    lengths = np.arange(sum(documents)) % 3
    with IndexedWriter(directory / "corpus", np.dtype("<u2")) as writer:
        writer.append(np.arange(lengths.sum()), lengths, np.array(documents, np.int64))
        writer.close()
    source, chosen_K = IndexedCorpus.open(directory / "corpus"), np.array(chosen, np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view_module, "_CHUNK_SEQUENCES", chunk)
        patch.setattr(view_module, "_MAX_SPAN_FACTOR", span_factor)
        found = make_view(source, chosen_K, directory / "views")
    documents_K = np.searchsorted(source.boundaries_D, chosen_K, side="right")
    starts_new = (np.diff(documents_K) != 0) | (np.diff(chosen_K) <= 0)
    boundaries = [0, *(np.flatnonzero(starts_new) + 1), len(chosen)] if chosen else [0]
    assert found.boundaries_D.tolist() == boundaries
    assert found.lengths_N.tolist() == source.lengths_N[chosen_K].tolist()
    assert found.pointers_N.tolist() == source.pointers_N[chosen_K].tolist()
    assert load_manifest(found.prefix).counts == {
        "num_sequences": len(chosen),
        "num_documents": len(boundaries) - 1,
        "num_tokens": int(source.lengths_N[chosen_K].sum()),
    }
    assert found.prefix == make_view(source, chosen_K, directory / "views").prefix  # and the fingerprint is right
    assert found.verified_fingerprint() == load_manifest(found.prefix).fingerprint


def mapped_bytes(*paths):
    """Memory of this process that are pages of some files."""
    # One search in bytes: of the thousands of mappings of a test process no line becomes an object of its own.
    names = b"|".join(re.escape(os.fsencode(path)) for path in paths)
    with open("/proc/self/smaps", "rb") as smaps:
        resident = re.findall(rb"(?m) (?:%s)\n(?:[A-Z].*\n)*?Rss: +(\d+) kB" % names, smaps.read())
    return sum(map(int, resident)) * 1024


@pytest.mark.parametrize("sequences_a_document", [1, 2])
def test_memory_grows_neither_with_the_source_nor_with_the_selection(tmp_path, monkeypatch, sequences_a_document):
    monkeypatch.setattr(view_module, "_CHUNK_SEQUENCES", 1 << 15)
    num_sequences, prefix = 1_000_000, tmp_path / "corpus"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        num_documents = num_sequences // sequences_a_document
        writer.append(
            np.zeros(num_sequences), np.ones(num_sequences, np.int32), np.full(num_documents, sequences_a_document)
        )
        writer.close()
    source = IndexedCorpus.open(prefix)
    index = tmp_path / "corpus.idx"
    assert mapped_bytes(index) < 7e6 < index.stat().st_size
    np.save(tmp_path / "chosen.npy", np.arange(num_sequences))
    chosen_K = np.load(tmp_path / "chosen.npy", mmap_mode="r")
    most_bytes, plain_gather = 0, view_module._gather

    def watched_gather(*arrays):
        nonlocal most_bytes
        most_bytes = max(most_bytes, mapped_bytes(index, tmp_path / "chosen.npy"))
        return plain_gather(*arrays)

    monkeypatch.setattr(view_module, "_gather", watched_gather)
    fingerprint = source.fingerprint()  # reads 4 MiB at once
    tracemalloc.start()
    write_view(source, chosen_K, tmp_path / "views", label="refined", settings={}, source_fingerprint=fingerprint)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 4e6 < (tmp_path / "chosen.npy").stat().st_size
    assert 0 < most_bytes < 7e6  # the kernel maps 2 MiB around a page
    assert chosen_K[-1] == num_sequences - 1  # what was given back is read again
    assert source.lengths_N[-1] == 1


@pytest.mark.parametrize("sequence", [-1, 4])
def test_a_sequence_that_is_not_there_is_refused(tmp_path, literal_corpus, sequence):
    with pytest.raises(InputError, match=f"sequence {sequence} was selected, but .*corpus has 4: the selection is of"):
        make_view(literal_corpus, [0, sequence, 3], tmp_path / "views")
    assert not (tmp_path / "views").exists()


def test_a_private_map_keeps_its_changes(tmp_path, literal_corpus):
    np.save(tmp_path / "chosen.npy", np.arange(3))
    chosen_K = np.load(tmp_path / "chosen.npy", mmap_mode="c")
    chosen_K[2] = 0
    assert sequences_of(make_view(literal_corpus, chosen_K, tmp_path / "views")) == [[10, 11, 12], [], [10, 11, 12]]


def with_documents(write_corpus, boundaries):
    """The literal corpus with several sequences a document, as Megatron's sentence splitting writes it."""
    corpus = write_corpus()
    write_index(
        corpus.prefix,
        token_dtype=corpus.token_dtype,
        lengths_N=corpus.lengths_N,
        boundaries_D=np.array(boundaries, np.int64),
    )
    return IndexedCorpus.open(corpus.prefix)
