"""Jobs that have filled a store together finish it once."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_stores import VERSIONS

from megatron_miniplm.artifacts.leases import CLAIMS, Leases
from megatron_miniplm.artifacts.manifest import manifest_path
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.scoring import engine as finishing
from megatron_miniplm.scoring.engine import finish_in_turn, missing_at_start

NUM_BLOCKS = 5


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScoreStore:
    """All blocks published, no manifest."""
    monkeypatch.setattr(finishing, "POLL_SECONDS", 0.01)
    identity: dict[str, Any] = {
        "model": {},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": NUM_BLOCKS}],
        "settings": {"block_sequences": 1},
    }
    store = ScoreStore.create_or_resume(tmp_path / "scores", identity)
    for block in range(NUM_BLOCKS):
        store.write_block(block, np.ones(1), np.ones(1, np.int64))
    return store


def test_one_of_many_jobs_finishes(filled: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    finished: list[int] = []
    finish = ScoreStore.finish
    monkeypatch.setattr(ScoreStore, "finish", lambda *arguments: finished.append(1) or finish(*arguments))
    with ThreadPoolExecutor(8) as pool:
        stores = [ScoreStore(filled.directory, filled.identity) for _ in range(8)]
        manifests = list(pool.map(lambda store: finish_in_turn(store, (), VERSIONS), stores))
    assert len(finished) == 1
    assert {manifest.counts["num_tokens"] for manifest in manifests} == {NUM_BLOCKS}
    assert not (filled.directory / CLAIMS).exists()


def test_when_who_finishes_dies_another_does(filled: ScoreStore) -> None:
    with Leases(filled.directory, renew_seconds=1000) as dead:
        assert dead.claim(NUM_BLOCKS)
        os.utime(dead.lease_path, (0, 0))
        assert finish_in_turn(filled, (), VERSIONS).counts["num_tokens"] == NUM_BLOCKS


def test_a_damaged_block_is_found_by_whoever_finishes(filled: ScoreStore) -> None:
    path = filled.block_path(2)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    for _ in range(2):  # the claim of the first does not hold up the second
        with pytest.raises(CorruptArtifactError):
            finish_in_turn(filled, (), VERSIONS)
    assert not filled.has_manifest


def test_a_manifest_that_is_there_before_all_blocks_are_is_removed(filled: ScoreStore) -> None:
    filled.finish((), VERSIONS)
    assert missing_at_start(filled) == []
    assert filled.has_manifest
    filled.block_path(3).unlink()
    assert missing_at_start(filled) == [3]
    assert not manifest_path(filled.directory).exists()
