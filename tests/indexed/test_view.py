import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed.writer import write_index


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
