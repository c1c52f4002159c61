import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.reports.histograms import Axis

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50)


@given(sample=VALUES, value=VALUES)
def test_every_value_has_the_counter_of_its_bin(sample: list[float], value: list[float]) -> None:
    axis = Axis.covering(np.array(sample), 64)
    edges, counter_N = axis.edges, axis.counters(np.array(value))
    slack = 1e-9 * axis.width + 1e-9 * np.abs(edges).max()
    for one, counter in zip(value, counter_N.tolist(), strict=True):
        low, high = ([-np.inf, *edges][counter], [*edges, np.inf][counter])
        assert low - slack <= one <= high + slack


@given(value=VALUES)
def test_negative_values_have_counters_of_their_own(value: list[float]) -> None:
    axis = Axis.covering(np.array(value), 64, with_zero=True)
    value_N = np.array(value)
    assert ((axis.counters(value_N) < axis.zero) == (value_N < 0))[np.abs(value_N) > 1e-300].all()


def test_a_sample_lies_inside_and_outliers_do_not_stretch_it() -> None:
    value_N = np.random.default_rng(0).normal(size=100_000)
    axis = Axis.covering(np.append(value_N, [1e9, -np.inf, np.inf]), 1000)
    counter_N = axis.counters(value_N)
    assert counter_N.min() > 0
    assert counter_N.max() <= 1000
    assert axis.width < 0.03
    assert axis.counters(np.array([-np.inf, np.inf])).tolist() == [0, 1001]


@pytest.mark.parametrize("value", [0.0, 3.0, -1e9])
def test_one_value_or_none(value: float) -> None:
    for sample in (np.full(9, value), np.zeros(0)):
        axis = Axis.covering(sample, 16)
        assert 0 < axis.counters(sample[:1]) <= 16 if len(sample) else axis.width > 0
