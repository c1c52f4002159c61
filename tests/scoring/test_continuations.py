import numpy as np
import pytest

from megatron_miniplm.scoring.continuations import ContinuationPool, Continuations, ContinuationSums
from megatron_miniplm.scoring.rows import Row, ScoringRules, read_rows

CONTEXT_TOKENS, ROW_TOKENS = 6, 12
RULES = ScoringRules(context_tokens=CONTEXT_TOKENS, overlap_tokens=0)
#: Plain, one token each, no context to speak of, just what fits, one too much, a continuation as long as the context.
PAIRS = [
    ([1, 2, 3], [4, 5]),
    ([6], [7]),
    ([8], [9, 10, 11]),
    ([20, 21, 22, 23, 24], [25, 26]),
    ([30, 31, 32, 33, 34, 35], [36, 37]),
    ([40, 41, 42], [43, 44, 45, 46, 47, 48]),
]


@pytest.fixture
def continuations() -> Continuations:
    return Continuations.of(PAIRS, context_tokens=CONTEXT_TOKENS)


def rows_of(continuations: Continuations, places: range) -> list[Row]:
    block = continuations.plan(places, row_tokens=ROW_TOKENS)
    return list(read_rows(ContinuationPool(continuations), block, RULES, row_tokens=ROW_TOKENS, trim=False))


def test_what_is_too_long_loses_its_start(continuations: Continuations) -> None:
    """As lm_eval's HFLM: the last `max_length + 1` tokens, of which the model is fed all but the last."""
    pool = ContinuationPool(continuations)
    assert len(pool) == len(PAIRS)
    for index, (context, continuation) in enumerate(PAIRS):
        assert pool.sequence(index).tolist() == [*context, *continuation][-CONTEXT_TOKENS - 1 :]


@pytest.mark.parametrize("places", [range(6), range(2, 5)])
def test_each_token_of_each_continuation_is_a_target_once(continuations: Continuations, places: range) -> None:
    found: dict[int, list[int]] = {}
    for row in rows_of(continuations, places):
        for at, target, sequence in zip(row.scored_K, row.targets_K, row.sequence_K, strict=True):
            found.setdefault(places[sequence], []).append(int(target))
            context, continuation = PAIRS[places[sequence]]
            whole = [*context, *continuation]
            assert row.tokens_S[at] == whole[whole.index(target) - 1], "each is predicted from the token before it"
    assert found == {place: PAIRS[place][1] for place in places}


def test_several_share_a_row(continuations: Continuations) -> None:
    num_inputs = sum(min(len(context) + len(rest) - 1, CONTEXT_TOKENS) for context, rest in PAIRS)
    assert len(rows_of(continuations, range(6))) == -(-num_inputs // ROW_TOKENS)


def test_greedy_tokens_are_counted_beside_the_sums() -> None:
    sums = ContinuationSums(3, 2)
    sums.add(np.array([0, 0, 2]), np.array([[1.0, 2.0, 4.0], [1.0, 0.0, 1.0]], np.float32))
    sums.add(np.array([1, 1]), np.array([[0.5, 0.25], [1.0, 1.0]], np.float32))
    assert sums.nll_N.tolist() == [3.0, 0.75, 4.0]
    assert sums.num_tokens_N.tolist() == [2, 2, 1]
    assert sums.num_greedy_N.tolist() == [1, 2, 1]
    assert (sums.rows_left, sums.first_bad) == (0, None)
