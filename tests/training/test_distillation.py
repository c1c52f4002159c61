"""The batches that the teacher reads, given to the student again."""

import pytest

from megatron_miniplm.training.distillation import _replayed


class Batches:
    """Has `__next__` alone, like Megatron's RerunDataIterator."""

    def __init__(self, count: int) -> None:
        self.num_read, self.count = 0, count

    def __next__(self) -> dict[str, int]:
        if self.num_read == self.count:
            raise StopIteration
        self.num_read += 1
        return {"batch": self.num_read}


def test_the_student_gets_the_teachers_batches() -> None:
    batches = Batches(5)
    ahead, again = _replayed(batches)
    first = [next(ahead), next(ahead)]
    first[0].clear()
    assert batches.num_read == 2, "no more than the teacher asked for"
    assert [next(again), next(again)] == [{"batch": 1}, {"batch": 2}], "whatever the teacher's step did to them"
    with pytest.raises(StopIteration):
        next(again)
    assert next(batches) == {"batch": 3}


def test_ranks_without_data_and_lists_of_iterators() -> None:
    assert _replayed(None) == (None, None)
    (ahead,), (again,) = _replayed([Batches(1)])
    assert next(ahead) == next(again) == {"batch": 1}
