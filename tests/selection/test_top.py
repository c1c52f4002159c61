import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.top import check_ratio, top_sequences, top_tokens

#: Few distinct values, so that ties are common.
VALUES = st.one_of(st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, math.inf]), st.floats(allow_nan=False))


def by_full_sort(values: list[float]) -> list[int]:
    """Ids, greatest value first, of equal values the lower id first."""
    return sorted(range(len(values)), key=lambda index: (-values[index], index))


@given(st.lists(VALUES, min_size=1, max_size=40).flatmap(lambda v: st.tuples(st.just(v), st.integers(0, len(v)))))
@example(([1.0], 1))
@example(([0.0, -0.0, 0.0], 2))
@example(([2.0] * 5, 3))
@example(([-math.inf] * 3, 2))
@example(([math.inf, -math.inf, math.inf], 1))
def test_top_sequences_equals_a_full_sort(case: tuple[list[float], int]) -> None:
    values, num_kept = case
    kept = top_sequences(np.array(values), num_kept)
    assert kept.tolist() == sorted(by_full_sort(values)[:num_kept])
    assert kept.dtype == np.int64


@given(
    sequences=st.lists(st.tuples(VALUES, st.integers(0, 20)), min_size=1, max_size=40),
    ratio=st.floats(0, 1, exclude_min=True),
)
@example([(1.0, 3)], 1e-9)
@example([(1.0, 3), (1.0, 3)], 1.0)
@example([(1.0, 0), (-math.inf, 4)], 0.5)
def test_top_tokens_is_the_smallest_top_set_that_holds_enough(sequences: list[tuple[float, int]], ratio: float) -> None:
    values, num_tokens = map(list, zip(*sequences, strict=True))
    target = ratio * sum(num_tokens)
    expected, held = [], 0
    for index in by_full_sort(values):
        if held >= target:
            break
        expected.append(index)
        held += num_tokens[index]
    kept = top_tokens(np.array(values), np.array(num_tokens, np.int32), target)
    assert kept.tolist() == sorted(expected)
    assert kept.dtype == np.int64


def test_token_counts_beyond_32_bits() -> None:
    num_tokens_N = np.full(4, 2**30, np.int32)
    assert top_tokens(np.arange(4.0), num_tokens_N, 3 * 2**30).tolist() == [1, 2, 3]


@pytest.mark.parametrize("ratio", [1e-9, 0.5, 1])
def test_ratios_that_can_be_kept(ratio: float) -> None:
    check_ratio(ratio)


@pytest.mark.parametrize("ratio", [0, -0.5, 1.0001, math.inf, math.nan])
def test_other_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(InputError) as raised:
        check_ratio(ratio)
    assert str(raised.value) == f"--ratio {ratio} must lie in (0, 1]"
