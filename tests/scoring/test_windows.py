import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.errors import InputError
from megatron_miniplm.scoring.windows import cut_windows


def rows(lengths: list[int], context_tokens: int, overlap_tokens: int) -> list[tuple[int, int, int, int]]:
    windows = cut_windows(np.array(lengths, np.int32), context_tokens=context_tokens, overlap_tokens=overlap_tokens)
    columns = (windows.sequence_W, windows.start_W, windows.num_inputs_W, windows.num_context_W)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_literal() -> None:
    """Context 4, overlap 1: (sequence, start, inputs, context) of lengths 0, 1, 2, 5, 6 and 12."""
    assert rows([0, 1, 2, 5, 6, 12], 4, 1) == [
        (2, 0, 1, 0),
        (3, 0, 4, 0),  # five tokens are four inputs: still one window
        (4, 0, 4, 0),
        (4, 3, 2, 1),
        (5, 0, 4, 0),
        (5, 3, 4, 1),
        (5, 6, 4, 1),
        (5, 9, 2, 1),
    ]


def test_nothing_to_score() -> None:
    assert rows([], 4, 1) == []
    assert rows([0, 1, 0], 4, 1) == []


@given(
    lengths=st.lists(st.integers(0, 60), max_size=8),
    limits=st.integers(1, 12).flatmap(lambda context: st.tuples(st.just(context), st.integers(0, context - 1))),
)
def test_every_token_but_the_first_is_scored_once_with_enough_context(
    lengths: list[int], limits: tuple[int, int]
) -> None:
    context_tokens, overlap_tokens = limits
    num_scored = [np.zeros(length, int) for length in lengths]
    for sequence, start, num_inputs, num_context in rows(lengths, context_tokens, overlap_tokens):
        assert 1 <= num_inputs <= context_tokens
        assert start + num_inputs < lengths[sequence], "the last input has a target"
        assert num_context == (overlap_tokens if start else 0)
        for position in range(num_context, num_inputs):
            target = start + position + 1
            num_scored[sequence][target] += 1
            # A target sees the inputs before it in its window: all of them, or at least the overlap and itself's.
            assert position + 1 >= min(target, overlap_tokens + 1)
    for scored in num_scored:
        assert scored[:1].sum() == 0
        assert np.all(scored[1:] == 1)


@given(length=st.integers(2, 200), context_tokens=st.integers(1, 20))
def test_windows_are_as_few_as_the_stride_allows(length: int, context_tokens: int) -> None:
    assert len(rows([length], context_tokens, 0)) == -(-(length - 1) // context_tokens)


@pytest.mark.parametrize("overlap_tokens", [-1, 64, 65])
def test_overlap_must_leave_room(overlap_tokens: int) -> None:
    with pytest.raises(InputError) as raised:
        rows([100], 64, overlap_tokens)
    assert str(raised.value) == f"--miniplm-window-overlap {overlap_tokens} must lie in [0, --seq-length 64)"
