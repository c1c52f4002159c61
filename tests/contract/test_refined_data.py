"""A view, its compact copy and the indices alone are the same data for Megatron's own dataset, sample by sample."""

from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron_runs import CONTEXT_TOKENS, dataset_config, random_sequences, write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.materialize import materialize


def dataset_of(prefix: Path, indices: np.ndarray | None, cache: Path, num_samples: int) -> GPTDataset:
    """Megatron's dataset over all sequences of a prefix, or over those that are given."""
    indexed = IndexedDataset(str(prefix), multimodal=False, mmap=True)
    numbers = np.arange(len(indexed), dtype=np.int32) if indices is None else np.asarray(indices, np.int32)
    return GPTDataset(indexed, str(prefix), numbers, num_samples, Split.train, dataset_config(prefix, cache))


@pytest.fixture
def corpora(tmp_path: Path) -> list[IndexedCorpus]:
    rng = np.random.default_rng(8)
    return [
        write_corpus(tmp_path / "data" / name, random_sequences(rng.integers(1, 3 * CONTEXT_TOKENS, size), seed))
        for seed, (name, size) in enumerate({"web": 90, "code": 60}.items())
    ]


def test_three_ways_to_the_same_samples(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    """Over more than two epochs, each shuffled anew."""
    rng = np.random.default_rng(9)
    stores = [write_scores(tmp_path / name, corpora, rng.random(150) * 50) for name in ("teacher", "reference")]
    directories = [store.directory for store in stores]
    sample(*directories, tmp_path / "views")
    sample(*directories, tmp_path / "indices", index_only=True)
    materialize([tmp_path / "views"], tmp_path / "copies")
    materialize([tmp_path / "indices"], tmp_path / "copies_of_indices")
    views, index_only = Selection.open(tmp_path / "views"), Selection.open(tmp_path / "indices")
    assert index_only.is_index_only
    assert not views.is_index_only
    for with_view, with_indices in zip(views.prefixes, index_only.prefixes, strict=True):
        assert with_view.view is not None
        num_samples = int(2.5 * with_view.num_tokens / CONTEXT_TOKENS)
        copies = [tmp_path / directory / with_view.view.name for directory in ("copies", "copies_of_indices")]
        datasets = [
            dataset_of(with_view.view, None, tmp_path / "cache", num_samples),
            dataset_of(with_indices.path, with_indices.indices(), tmp_path / "cache", num_samples),
            *(dataset_of(copy, None, tmp_path / "cache", num_samples) for copy in copies),
        ]
        first, *others = datasets
        assert len(first) >= num_samples
        for other in others:
            assert len(other) == len(first)
            for position in range(len(first)):
                one, another = first[position], other[position]
                assert all(torch.equal(one[key], another[key]) for key in one)
        tokens = torch.cat([first[position]["tokens"] for position in range(len(first))])
        assert len(tokens.unique()) > 20, "no constant data"


def test_the_blend_draws_in_proportion_to_tokens(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    rng = np.random.default_rng(10)
    stores = [write_scores(tmp_path / name, corpora, rng.random(150) * 50) for name in ("teacher", "reference")]
    weights = {}
    for name, index_only in (("views", False), ("indices", True)):
        sample(*(store.directory for store in stores), tmp_path / name, index_only=index_only)
        words = (tmp_path / name / "data_args.txt").read_text().split()
        weights[name] = [int(word) for word in words[::2]]
        assert [IndexedCorpus.open(word).is_view for word in words[1::2]] == [not index_only] * 2
    materialize([tmp_path / "views"], tmp_path / "copies")
    weights["copies"] = [int(word) for word in (tmp_path / "copies" / "data_args.txt").read_text().split()[::2]]
    expected = [prefix.num_tokens for prefix in Selection.open(tmp_path / "views").prefixes]
    assert weights == {"views": expected, "indices": expected, "copies": expected}
    assert sum(expected) < sum(corpus.num_tokens for corpus in corpora)
