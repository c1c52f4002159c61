from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import random_sequences, write_corpus

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.scoring.rows import (
    ROW_MULTIPLE,
    Row,
    ScoringRules,
    cut_windows,
    empty_row,
    pack_rows,
    plan_block,
    read_rows,
    trimmed_length,
)

CONTEXT, OVERLAP, ROW = 8, 3, 16
BOS, EOD = 90, 91


def pool_of(tmp_path: Path, sequences: list[list[int]]) -> Pool:
    return Pool([write_corpus(tmp_path / "corpus", sequences)])


def rows_of(pool: Pool, *, trim: bool = False, chosen: list[bool] | None = None, **rules: int) -> list[Row]:
    scoring_rules = ScoringRules(context_tokens=CONTEXT, overlap_tokens=OVERLAP, **rules)
    chosen_N = None if chosen is None else np.array(chosen)
    block = plan_block(pool, range(len(pool)), scoring_rules, row_tokens=ROW, chosen_N=chosen_N)
    return list(read_rows(pool, block, scoring_rules, row_tokens=ROW, trim=trim))


def predictions(rows: list[Row]) -> dict[int, list[tuple[list[int], int]]]:
    """Sequence -> what each counted prediction sees (its document up to its input) and its target, by position."""
    found: dict[int, list[tuple[int, list[int], int]]] = {}
    for row in rows:
        for at, target, sequence in zip(row.scored_K, row.targets_K, row.sequence_K, strict=True):
            start = max(boundary for boundary in row.boundaries if boundary <= at)
            found.setdefault(int(sequence), []).append((at, row.tokens_S[start : at + 1].tolist(), int(target)))
    return {sequence: [(seen, target) for _, seen, target in sorted(parts)] for sequence, parts in found.items()}


def test_a_row_by_hand(tmp_path: Path) -> None:
    (row,) = rows_of(pool_of(tmp_path, [[1, 2, 3], [], [5], [7, 8, 9, 10]]))
    assert row.tokens_S.tolist() == [7, 8, 9, 1, 2, *[0] * 11]
    assert row.positions_S.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
    assert row.boundaries == [0, 3, 5, 13, 16]  # padding is cut to the context too
    assert row.num_windows == 2
    assert row.scored_K.tolist() == [0, 1, 2, 3, 4]
    assert row.targets_K.tolist() == [8, 9, 10, 2, 3]
    assert row.sequence_K.tolist() == [3, 3, 3, 0, 0]


def test_every_token_but_the_first_is_predicted_once_from_what_came_before(tmp_path: Path) -> None:
    sequences = [tokens.tolist() for tokens in random_sequences([0, 1, 2, 8, 9, 10, 14, 15, 30, 5, 3], 1)]
    found = predictions(rows_of(pool_of(tmp_path, sequences)))
    for index, tokens in enumerate(sequences):
        targets = [target for _, target in found.get(index, [])]
        assert sorted(targets) == sorted(tokens[1:])
        for seen, target in found.get(index, []):
            ends = [at for at in range(1, len(tokens)) if tokens[at] == target and tokens[at - len(seen) : at] == seen]
            assert ends, "a prediction sees the tokens right before its target"
            assert len(seen) >= min(OVERLAP + 1, ends[0])


def test_bos_makes_the_first_token_count(tmp_path: Path) -> None:
    found = predictions(rows_of(pool_of(tmp_path, [[1, 2], [], [3]]), bos_token=BOS))
    assert found == {0: [([BOS], 1), ([BOS, 1], 2)], 2: [([BOS], 3)]}


def test_masked_eod_leaves_out_what_is_predicted_from_it(tmp_path: Path) -> None:
    pool = pool_of(tmp_path, [[1, EOD, 2, 3], [EOD, EOD], [4, EOD]])
    found = predictions(rows_of(pool, masked_input=EOD))
    assert found == {0: [([1], EOD), ([1, EOD, 2], 3)], 2: [([4], EOD)]}


def test_only_chosen_sequences_are_read(tmp_path: Path) -> None:
    found = predictions(rows_of(pool_of(tmp_path, [[1, 2], [3, 4], [5, 6]]), chosen=[True, False, True]))
    assert found.keys() == {0, 2}


@pytest.mark.parametrize("trim", [False, True])
def test_lengths_of_rows(tmp_path: Path, trim: bool) -> None:
    rows = rows_of(pool_of(tmp_path, [[1] * 9, [2] * 9, [3, 4]]), trim=trim)
    assert [len(row.tokens_S) for row in rows] == [16, 16]  # a row shorter than the multiple is not trimmed
    assert all(row.boundaries[-1] == len(row.tokens_S) for row in rows)


def test_an_empty_row_counts_nothing() -> None:
    row = empty_row(ROW, CONTEXT)
    assert (len(row.tokens_S), row.boundaries, row.num_windows, len(row.scored_K)) == (ROW, [0, 8, 16], 0, 0)
    assert int(row.positions_S.max()) == CONTEXT - 1


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
    assert str(raised.value) == f"--window-overlap {overlap_tokens} must lie in [0, --seq-length 64)"


def packed_rows(lengths: list[int], row_tokens: int) -> list[list[int]]:
    return [row.tolist() for row in pack_rows(np.array(lengths, np.int64), row_tokens=row_tokens)]


def test_literal_rows() -> None:
    """Longest first; 5 goes where 6 is (one left over), not to 3 + 2; equal lengths keep their order."""
    assert packed_rows([3, 8, 6, 2, 5, 2], 8) == [[1], [2, 3], [4, 0], [5]]
    assert packed_rows([4, 4, 4], 12) == [[0, 1, 2]]


def test_a_window_goes_into_the_fullest_row_that_has_room() -> None:
    assert packed_rows([9, 8, 7, 2], 10) == [[1, 3], [0], [2]]


def test_no_windows_no_rows() -> None:
    assert packed_rows([], 32) == []


@given(lengths=st.lists(st.integers(1, 64), max_size=80), row_tokens=st.integers(64, 200))
def test_rows_hold_every_window_once_and_no_two_could_be_one(lengths: list[int], row_tokens: int) -> None:
    rows = packed_rows(lengths, row_tokens)
    assert sorted(window for row in rows for window in row) == list(range(len(lengths)))
    fills = [sum(lengths[window] for window in row) for row in rows]
    assert all(fill <= row_tokens for fill in fills)
    assert fills == sorted(fills, reverse=True)
    assert len(fills) < 2 or fills[-1] + fills[-2] > row_tokens
    assert rows == packed_rows(lengths, row_tokens)


def test_real_lengths_leave_little_room() -> None:
    """4,096 documents of about 300 tokens in rows of 4 x 1,024."""
    lengths_W = np.clip(np.random.default_rng(0).lognormal(5.3, 0.9, 4096).astype(np.int64), 8, 1024)
    rows = pack_rows(lengths_W, row_tokens=4096)
    assert lengths_W.sum() / (len(rows) * 4096) > 0.995


@given(st.integers(1, 500), st.integers(1, 500))
def test_a_trimmed_row_holds_its_tokens(num_tokens: int, row_tokens: int) -> None:
    num_tokens = min(num_tokens, row_tokens)
    length = trimmed_length(num_tokens, row_tokens=row_tokens)
    assert num_tokens <= length <= row_tokens
    assert length == row_tokens or length % ROW_MULTIPLE == 0
