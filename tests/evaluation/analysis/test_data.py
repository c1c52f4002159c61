"""Data sets of the same sequences are the same, whatever they are made of."""

from pathlib import Path

import numpy as np
import pytest
from megatron_runs import random_sequences, write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.evaluation.analysis.data import Dataset, check_tokenizers
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed.materialize import materialize

LENGTHS = [3, 0, 7, 1, 40, 2, 2, 9, 5, 5, 5, 5]


@pytest.fixture
def corpora(tmp_path: Path) -> list[IndexedCorpus]:
    """Two with the same lengths and other tokens."""
    return [write_corpus(tmp_path / name, random_sequences(LENGTHS, seed)) for seed, name in enumerate(("web", "code"))]


def drawn(*paths: Path, seed: int = 1, size: int = 10, max_tokens: int = 6) -> list[list[int]]:
    dataset = Dataset.open("it", list(paths))
    return [tokens_T.tolist() for tokens_T in dataset.sample(size, seed=seed, max_tokens=max_tokens)]


def test_the_order_of_prefixes_does_not_matter(corpora: list[IndexedCorpus]) -> None:
    web, code = (corpus.prefix for corpus in corpora)
    assert drawn(web, code) == drawn(code, web)
    assert drawn(web, code) != drawn(code, web, seed=2)


def test_a_sample_is_without_replacement_and_without_empty_sequences(corpora: list[IndexedCorpus]) -> None:
    everything = drawn(corpora[0].prefix, size=1000, max_tokens=100)
    expected = [corpora[0].sequence(index).tolist() for index in range(len(LENGTHS)) if LENGTHS[index]]
    assert everything != expected, "a part of the sample must be a sample"
    assert sorted(everything) == sorted(expected)
    assert all(len(tokens) <= 6 for tokens in drawn(corpora[0].prefix, size=1000))


def test_every_sequence_is_drawn_alike(corpora: list[IndexedCorpus]) -> None:
    """4 of 24 sequences, 600 times: 100 each, with a standard deviation of 9."""
    dataset = Dataset.open("it", [corpus.prefix for corpus in corpora])
    counts: dict[bytes, int] = {}
    for seed in range(600):
        for tokens_T in dataset.sample(4, seed=seed, max_tokens=100):
            counts[tokens_T.tobytes()] = counts.get(tokens_T.tobytes(), 0) + 1
    assert len(counts) == 22  # two are empty
    assert 55 < min(counts.values()) <= max(counts.values()) < 145


def test_views_copies_and_indices_are_one_data_set(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    nll = rng.random(2 * len(LENGTHS))
    stores = [write_scores(tmp_path / name, corpora, nll * scale) for name, scale in (("teacher", 1), ("reference", 2))]
    sample(stores[0].directory, stores[1].directory, tmp_path / "views")
    sample(stores[0].directory, stores[1].directory, tmp_path / "indices", index_only=True)
    materialize([tmp_path / "views"], tmp_path / "copies")
    expected = drawn(tmp_path / "views")
    assert len(expected) == 10
    assert drawn(tmp_path / "copies") == expected
    assert drawn(tmp_path / "indices") == expected
    lengths = [
        np.concatenate(list(Dataset.open("it", [tmp_path / name]).lengths())).tolist()
        for name in ("views", "copies", "indices")
    ]
    assert lengths[0] == lengths[1] == lengths[2]


def test_repeated_sequences_count_as_often_as_they_are_there(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    view = write_view(corpora[0], np.array([2, 2, 4]), tmp_path / "views", label="it", settings={})
    dataset = Dataset.open("it", [view])
    assert (len(dataset), dataset.num_tokens) == (3, 7 + 7 + 40)


def test_what_is_no_data_is_refused(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.idx does not exist: give the prefix of a \.bin/\.idx pair"):
        Dataset.open("it", [tmp_path / "nothing"])
    with pytest.raises(InputError, match="stands twice in the corpus"):
        Dataset.open("it", [corpora[0].prefix, corpora[0].prefix])
    empty = write_corpus(tmp_path / "empty", [])
    with pytest.raises(InputError, match="it has no sequences: there is nothing to analyse"):
        Dataset.open("it", [empty.prefix])


def test_tokens_of_different_tokenizers_are_refused(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "wide", np.dtype("<i4")) as writer:
        writer.append(np.array([1, 2]), np.array([2]))
        writer.close()
    both = [Dataset.open("web", [corpora[0].prefix]), Dataset.open("wide", [tmp_path / "wide"])]
    with pytest.raises(FingerprintMismatchError, match=r"web has token dtype uint16, .*wide has int32"):
        check_tokenizers(both)
    for size in ("100", "200"):
        (tmp_path / f"{size}.jsonl").write_text('{"text": "1 2 3"}\n')
        paths = ["--input", str(tmp_path / f"{size}.jsonl"), "--output-prefix", str(tmp_path / size)]
        assert run_tool("preprocess-data", [*paths, "--tokenizer-type", "NullTokenizer", "--vocab-size", size]) == 0
    of_size = [Dataset.open(size, [tmp_path / f"{size}_text_document"]) for size in ("100", "200")]
    with pytest.raises(FingerprintMismatchError, match="has 200: tokens of different tokenizers cannot be compared"):
        check_tokenizers([both[0], *of_size])
    check_tokenizers([both[0], of_size[0]])  # nothing is known of the first
