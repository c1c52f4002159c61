"""Whatever ends the writing of scores, of their export or of generated parts, the same command does the rest."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import counted_calls, faults, visible_bytes
from megatron_runs import write_corpus
from score_stores import VERSIONS, identity_of, write_scores

from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.baselines.generation_parts import Part, Parts
from megatron_miniplm.commands.scores_parquet import write_parquet
from megatron_miniplm.indexed import IndexedCorpus


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    return write_corpus(tmp_path / "corpus", [range(length) for length in (4, 0, 2, 1, 3, 6, 2)])


def score(directory: Path, corpus: IndexedCorpus) -> None:
    """What a job does: claim, publish, finish."""
    store = ScoreStore.create_or_resume(directory, identity_of([corpus], model="teacher"))
    with Leases(directory, renew_seconds=1000) as leases:
        for block in store.missing_blocks():
            assert leases.claim(block)
            num_sequences = len(store.plan.sequences(block))
            store.write_block(block, np.full(num_sequences, block), np.ones(num_sequences))
            leases.release(block)
    store.finish((), VERSIONS)


def generate(directory: Path) -> None:
    """What `generate-corpus` does before it puts the parts together."""
    identity: dict[str, Any] = {"model": {}, "corpus": [], "settings": {"seed": 1}}
    parts = Parts(directory, identity, BlockPlan(num_sequences=5, block_sequences=3), np.dtype("<u2"))
    parts.create_or_resume()
    parts.check()
    for block in parts.missing_blocks():
        num_sequences = len(parts.plan.sequences(block))
        prompts = [np.arange(row + 1) for row in range(num_sequences)]
        parts.write_block(block, Part.of(prompts, [np.full(2, block)] * num_sequences, parts.token_dtype))
    parts.check()


def export(directory: Path, store: ScoreStore) -> None:
    write_parquet(ScoreStore.open(store.directory), directory / "scores.parquet")


@pytest.fixture(params=["score", "generate", "export"])
def work(request: pytest.FixtureRequest, tmp_path: Path, corpus: IndexedCorpus) -> Callable[[Path], None]:
    if request.param == "score":
        return lambda directory: score(directory, corpus)
    if request.param == "generate":
        return generate
    store = write_scores(tmp_path / "teacher", [corpus], [1.0] * 7)
    return lambda directory: export(directory, store)


def test_the_same_command_continues_after_any_fault(tmp_path: Path, work: Callable[[Path], None]) -> None:
    with counted_calls(lambda number: None) as num_calls:
        work(tmp_path / "undisturbed")
    expected = visible_bytes(tmp_path / "undisturbed")
    assert expected
    codes = set()
    for name, code in faults(lambda: work(tmp_path / "disturbed"), num_calls[0]):
        codes.add(code)
        assert code in (0, 2, -9), name  # a call may fail that nothing depends on, such as that of a temporary file
        work(tmp_path / "disturbed")
        assert visible_bytes(tmp_path / "disturbed") == expected, name
        shutil.rmtree(tmp_path / "disturbed")
    assert codes >= {2, -9}
