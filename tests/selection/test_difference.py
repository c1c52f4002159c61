import numpy as np
import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.difference import DIFFERENCE, Measure


def differences(
    teacher_nll_N: np.ndarray, reference_nll_N: np.ndarray, num_scored_N: np.ndarray, reduction: str = "mean"
) -> np.ndarray:
    return Measure(reduction=reduction).values(teacher_nll_N, reference_nll_N, num_scored_N)


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


def test_bits_a_byte() -> None:
    value_N = Measure(reduction="bits-per-byte").values(TEACHER, REFERENCE, NUM_TOKENS, np.array([32, 4, 3, 0]))
    assert value_N.tolist() == pytest.approx([4 / 32 / np.log(2), -1 / 4 / np.log(2), -np.inf, -np.inf])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("-teacher", [-1.25, -1.0, -np.inf, -2.0]),
        ("reference", [1.75, 0.5, -np.inf, 2.0]),
        ("reference-teacher", [0.5, -0.5, -np.inf, 0.0]),
        ("max(teacher, 1.5) * -2 + tokens", [5.0, -1.0, -np.inf, -1.0]),
        ("log(exp(reference)) / abs(-teacher)", [1.4, 0.5, -np.inf, 1.0]),
    ],
)
def test_expressions(expression: str, expected: list[float]) -> None:
    assert Measure(expression=expression).values(TEACHER, REFERENCE, NUM_TOKENS).tolist() == pytest.approx(expected)


def test_what_an_expression_needs() -> None:
    assert Measure(expression="-teacher / tokens").names == {"teacher", "tokens"}
    assert Measure().expression == DIFFERENCE
    assert Measure(expression="-teacher").values(TEACHER, None, NUM_TOKENS).tolist()[0] == -1.25


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("__import__('os')", "\"__import__('os')\" is not allowed"),
        ("teacher.real", "'teacher.real' is not allowed"),
        ("student - teacher", "'student' is not allowed"),
        ("exp + teacher", "'exp' is not allowed"),
        ("exp(teacher, 2)", "'exp(teacher, 2)' is not allowed"),
        ("teacher ** 9", "'teacher ** 9' is not allowed"),
        ("[teacher]", "'[teacher]' is not allowed"),
        ("teacher if 1 else 2", "is not allowed"),
        ("teacher -", "is not an expression"),
        ("tokens", "neither teacher nor reference"),
        ("True * teacher", "'True' is not allowed"),
    ],
)
def test_other_expressions_are_refused(expression: str, found: str) -> None:
    with pytest.raises(InputError) as raised:
        Measure(expression=expression)
    assert found in str(raised.value)
