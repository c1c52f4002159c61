"""A store that somebody has damaged, or made up, gives the scores that were written or one error, soon."""

import copy
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from damage import JSON_VALUES
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.reports.inspection import bytes_to_check, find_faults

NLL = [3.5, 0.0, 1.25, 0.0, 2.5, 9.0, 0.75]
FILES = ("identity.json", "checksums.npy", "manifest.json", *(f"blocks/0000000{block}.npy" for block in range(3)))
LIMIT_SECONDS = 20.0


@pytest.fixture
def finished(tmp_path: Path) -> ScoreStore:
    corpus = write_corpus(tmp_path / "corpus", [range(length) for length in (4, 0, 2, 1, 3, 6, 2)])
    return write_scores(tmp_path / "teacher", [corpus], NLL)


def look_at(directory: Path) -> list[float]:
    """The scores, by way of all that reads a store."""
    bytes_to_check(directory)
    faults = find_faults(directory)
    store = ScoreStore.open(directory)
    store.missing_blocks()
    damaged = store.verify()
    store.require_complete()
    nll_N = store.read_all()["nll"]
    assert faults == []
    assert damaged == {}
    return nll_N.tolist()


def test_fuzz_scores_damaged_files(finished: ScoreStore) -> None:
    @fuzz("scores", 60)
    @given(data=st.data())
    def damage(data: st.DataObject) -> None:
        path = finished.directory / data.draw(st.sampled_from(FILES))
        intact = path.read_bytes()
        changed = bytearray(intact)
        for _ in range(data.draw(st.integers(1, 3))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        try:
            path.write_bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))])
            with suppress(MiniPLMError):
                assert look_at(finished.directory) == NLL
        finally:
            path.write_bytes(intact)

    damage()


def test_fuzz_scores_made_up_identities(finished: ScoreStore) -> None:
    path = finished.directory / "identity.json"
    values: dict[str, Any] = json.loads(path.read_text())
    places = ("format_version", "model", "corpus", "settings", "corpus/0", "settings/block_sequences")
    counts = st.sampled_from([0, 1, -1, 2**31, 2**39, 2**62, 2**64, 10**30, 1.5, True])

    @fuzz("scores", 60)
    @given(place=st.sampled_from([*places, "corpus/0/num_sequences"]), value=counts | JSON_VALUES)
    def make_up(place: str, value: Any) -> None:
        changed = copy.deepcopy(values)
        *outer, last = [int(part) if part.isdigit() else part for part in place.split("/")]
        target: Any = changed
        for part in outer:
            target = target[part]
        target[last] = value
        path.write_text(json.dumps(changed))
        start = time.process_time()
        with suppress(MiniPLMError):
            look_at(finished.directory)
        assert time.process_time() - start < LIMIT_SECONDS

    make_up()
