"""Score stores over a small corpus: one that is started, one that is finished."""

from pathlib import Path
from typing import Any

import pytest
from megatron_runs import write_corpus
from score_stores import SMALL_LENGTHS, SMALL_NLL, identity_of, write_scores

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.indexed import IndexedCorpus


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    return write_corpus(tmp_path / "corpus", [range(length) for length in SMALL_LENGTHS])


@pytest.fixture
def identity(corpus: IndexedCorpus) -> dict[str, Any]:
    return identity_of([corpus], model="teacher")


@pytest.fixture
def store(tmp_path: Path, identity: dict[str, Any]) -> ScoreStore:
    """Started, without blocks."""
    return ScoreStore.create_or_resume(tmp_path / "scores", identity)


@pytest.fixture
def finished(tmp_path: Path, corpus: IndexedCorpus) -> ScoreStore:
    return write_scores(tmp_path / "teacher", [corpus], SMALL_NLL)
