import numpy as np
import pytest

from megatron_miniplm.selection.difference import differences

TEACHER = np.array([10.0, 2.0, 0.0, 6.0], np.float32)
REFERENCE = np.array([14.0, 1.0, 0.0, 6.0], np.float32)
NUM_TOKENS = np.array([8, 2, 0, 3], np.int32)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", [0.5, -0.5, -np.inf, 0.0]), ("sum", [4.0, -1.0, -np.inf, 0.0])]
)
def test_literal(reduction: str, expected: list[float]) -> None:
    value_N = differences(TEACHER, REFERENCE, NUM_TOKENS, reduction)
    assert value_N.tolist() == expected
    assert value_N.dtype == np.float64


def test_mean_is_the_default() -> None:
    assert np.array_equal(
        differences(TEACHER, REFERENCE, NUM_TOKENS), differences(TEACHER, REFERENCE, NUM_TOKENS, "mean")
    )


def test_the_difference_of_two_large_sums_is_taken_in_float64() -> None:
    large = np.array([16_777_216.0], np.float32)
    small = np.array([0.5], np.float32)
    assert differences(small, large, np.array([1]), "sum").tolist() == [16_777_215.5]


def test_the_reductions_rank_differently_where_lengths_differ() -> None:
    """The paper's formula prefers the long sequence, its code the short one."""
    teacher_nll_N, reference_nll_N, num_tokens_N = np.array([1.0, 100.0]), np.array([3.0, 110.0]), np.array([2, 100])
    by_mean = differences(teacher_nll_N, reference_nll_N, num_tokens_N, "mean")
    by_sum = differences(teacher_nll_N, reference_nll_N, num_tokens_N, "sum")
    assert (by_mean.argmax(), by_sum.argmax()) == (0, 1)
