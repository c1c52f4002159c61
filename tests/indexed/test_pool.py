from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.indexed.reader import Pool

#: Five prefixes, three of them without sequences, and an empty sequence in the second.
PREFIXES = [[], [[1, 2, 3], [], [4]], [], [[5, 6]], []]
ALL = [[1, 2, 3], [], [4], [5, 6]]


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool([write_corpus(tmp_path / f"part{part}", sequences) for part, sequences in enumerate(PREFIXES)])


def test_ids_run_over_all_prefixes(pool: Pool) -> None:
    assert len(pool) == len(ALL)
    assert [pool.sequence(index).tolist() for index in range(len(pool))] == ALL


@pytest.mark.parametrize(("start", "stop"), [(start, stop) for start in range(5) for stop in range(start, 5)])
def test_lengths_of_any_run(pool: Pool, start: int, stop: int) -> None:
    lengths = pool.lengths(range(start, stop))
    assert lengths.tolist() == [len(sequence) for sequence in ALL[start:stop]]
    assert lengths.dtype == "int64"


def test_other_prefixes_take_their_place(pool: Pool, tmp_path: Path) -> None:
    pool.read_from([write_corpus(tmp_path / "other", [[7], [8, 9]])])
    assert len(pool) == 2
    assert pool.sequence(1).tolist() == [8, 9]
    assert pool.lengths(range(2)).tolist() == [1, 2]
