"""A store that somebody has damaged, or made up, gives the scores that were written or one error, soon."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import NO_FILES, damaged_bytes, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool
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
    """Bytes of any file, or no file in its place."""
    assert look_at(finished.directory) == NLL

    @fuzz("scores", 60)
    @given(data=st.data())
    def damage(data: st.DataObject) -> None:
        path = finished.directory / data.draw(st.sampled_from(FILES))
        intact = path.read_bytes()
        try:
            if data.draw(st.integers(0, 9)) == 9:
                put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
            else:
                path.write_bytes(data.draw(damaged_bytes(intact)))
            use(finished.directory)
        finally:
            put(path, intact)

    damage()


def use(directory: Path) -> None:
    """Read a store as everything does: the scores that were written, or one error, soon."""
    start = time.process_time()
    found: list[float] = []
    error = refusal_of(lambda: found.extend(look_at(directory)))
    assert error is not None or found == NLL
    assert run_tool("inspect", [str(directory), "--check"]) in (0, 2)
    assert run_tool("scores", [str(directory)]) in (0, 2)
    assert time.process_time() - start < LIMIT_SECONDS


@pytest.mark.parametrize("name", ["identity.json", "manifest.json"])
def test_fuzz_scores_made_up_values(finished: ScoreStore, name: str) -> None:
    """Any change to the values of a JSON file; the store may then hold what it likes, and is read or refused."""
    path = finished.directory / name
    values: dict[str, Any] = json.loads(path.read_text())

    @fuzz("scores", 60)
    @given(content=damaged_json(values))
    def make_up(content: bytes) -> None:
        path.write_bytes(content)
        start = time.process_time()
        refusal_of(lambda: read(finished.directory))
        assert run_tool("inspect", [str(finished.directory), "--check"]) in (0, 2)
        assert run_tool("scores", [str(finished.directory)]) in (0, 2)
        assert time.process_time() - start < LIMIT_SECONDS

    make_up()


def test_fuzz_scores_sealed_blocks(finished: ScoreStore) -> None:
    """Blocks of another shape, dtype or content, under checksums that agree with them."""
    paths = sorted((finished.directory / "blocks").iterdir())
    intact = {path: path.read_bytes() for path in [*paths, finished.directory / "checksums.npy"]}

    @fuzz("scores", 60)
    @given(data=st.data())
    def change(data: st.DataObject) -> None:
        for path, content in intact.items():
            path.write_bytes(content)
        path = data.draw(st.sampled_from(list(intact)))
        array = np.load(path)
        dtype = data.draw(
            st.sampled_from([array.dtype, np.dtype("<f8"), np.dtype("<i8"), np.dtype("V3"), np.dtype("O")])
        )
        shape = data.draw(st.sampled_from([array.shape, (0,), (1, 1), (), (5,), (2, 2, 2)]))
        fill = data.draw(st.sampled_from([0, 1]))
        made = np.full(shape, fill, dtype) if dtype.kind != "V" else np.zeros(shape, dtype)
        if dtype == array.dtype and dtype.names is not None and made.size:
            numbers = st.sampled_from([0, 1, np.nan, np.inf, -np.inf, -1, 1e308])
            name = data.draw(st.sampled_from(dtype.names))
            with np.errstate(all="ignore"):
                made[name] = np.float64(data.draw(numbers)).astype(made[name].dtype)
        np.save(path, made, allow_pickle=True)
        refusal_of(lambda: read(finished.directory))
        assert run_tool("inspect", [str(finished.directory), "--check"]) in (0, 2)
        assert run_tool("scores", [str(finished.directory)]) in (0, 2)

    change()


def read(directory: Path) -> None:
    """Read a store without asking what it holds."""
    store = ScoreStore.open(directory)
    store.missing_blocks()
    store.verify()
    store.require_complete()
    store.read_all()
