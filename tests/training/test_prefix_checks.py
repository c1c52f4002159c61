"""A view that is not what was written is not trained on."""

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron_runs import write_corpus

from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus, layout, write_view
from megatron_miniplm.training.prefix_checks import check_prefix_of, verify_view


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A view of sequences of one length: a pointer to another of them passes every other check."""
    corpus = write_corpus(tmp_path / "web", [[k, k] for k in range(40)])
    return write_view(corpus, np.arange(0, 40, 3), tmp_path / "views", label="some", settings={})


def test_a_plain_corpus_that_megatron_cannot_number(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GPTDataset` itself would number its sequences modulo 2^32."""
    dataset = IndexedDataset(str(prefix.parent.parent / "web"))
    arguments = (dataset, str(prefix.parent.parent / "web"), np.arange(40), None, Split.train, None)
    check_prefix_of(GPTDataset, arguments)
    monkeypatch.setattr(layout, "MAX_SEQUENCES", 39)
    with pytest.raises(InputError, match="web: 40 sequences, Megatron numbers at most 39 per prefix"):
        check_prefix_of(GPTDataset, arguments)


def point_elsewhere(prefix: Path) -> None:
    path = prefix.with_suffix(".idx")
    data = bytearray(path.read_bytes())
    data[34 + 4 * len(IndexedCorpus.open(prefix))] ^= 4  # first pointer: the sequence after it
    path.unlink()
    path.write_bytes(data)


def test_a_flipped_pointer(prefix: Path, tmp_path: Path) -> None:
    verify_view(str(prefix), tmp_path / "cache")
    point_elsewhere(prefix)
    assert IndexedCorpus.open(prefix).sequence(0).tolist() == [1, 1], "read as if nothing were wrong"
    with pytest.raises(CorruptArtifactError, match="its files have changed since they were written"):
        verify_view(str(prefix), tmp_path / "cache")


def test_other_data_behind_a_view(prefix: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "web", [[k, 7] for k in range(40)])
    with pytest.raises(CorruptArtifactError, match="its files have changed"):
        verify_view(str(prefix), tmp_path / "cache")


def test_a_restart_does_not_read_it_again(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_view(str(prefix), tmp_path / "cache")
    monkeypatch.setattr(IndexedCorpus, "open", lambda prefix: pytest.fail("it was read again"))
    verify_view(str(prefix), tmp_path / "cache")


def test_one_rank_reads_it(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_elsewhere(prefix)
    monkeypatch.setenv("RANK", "1")
    verify_view(str(prefix), tmp_path / "cache")


@pytest.mark.parametrize("path", ["web", "nowhere", "s3://bucket/views/some"])
def test_what_is_no_view_is_left_alone(prefix: Path, tmp_path: Path, path: str) -> None:
    verify_view(path if "://" in path else str(tmp_path / path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
