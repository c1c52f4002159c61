from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import random_sequences, write_corpus

from megatron_miniplm.scoring.batching import LENGTH_MULTIPLE, group_by_length, micro_batches, padded_length
from megatron_miniplm.scoring.pool import Pool
from megatron_miniplm.scoring.windows import cut_windows


def groups_of(lengths: list[int], max_tokens: int) -> list[list[int]]:
    return [group.tolist() for group in group_by_length(np.array(lengths, np.int64), max_tokens=max_tokens)]


def test_literal_groups() -> None:
    """Budget 32: two rows of up to 16 tokens, four of up to 8; equal lengths keep their order."""
    assert groups_of([3, 16, 8, 9, 8, 1, 16], 32) == [[1, 6], [3, 2], [4, 0, 5]]


def test_no_windows_no_groups() -> None:
    assert groups_of([], 32) == []


@given(lengths=st.lists(st.integers(1, 70), max_size=60), max_tokens=st.integers(1, 300))
def test_groups_hold_every_window_once_longest_first_within_the_budget(lengths: list[int], max_tokens: int) -> None:
    groups = groups_of(lengths, max_tokens)
    order = [window for group in groups for window in group]
    assert order == sorted(range(len(lengths)), key=lambda window: (-lengths[window], window))
    for group in groups:
        padded = padded_length(max(lengths[window] for window in group))
        assert len(group) == 1 or len(group) * padded <= max_tokens
    assert groups == groups_of(lengths, max_tokens)


@given(st.integers(1, 1000))
def test_padding_is_less_than_one_multiple(num_inputs: int) -> None:
    assert 0 <= padded_length(num_inputs) - num_inputs < LENGTH_MULTIPLE
    assert padded_length(num_inputs) % LENGTH_MULTIPLE == 0


@pytest.mark.parametrize("sequences", [range(0, 40), range(13, 31), range(5, 6)], ids=str)
def test_micro_batches_equal_a_slow_literal_reference(tmp_path: Path, sequences: range) -> None:
    context_tokens, overlap_tokens, max_tokens = 16, 4, 64
    texts = random_sequences(np.random.default_rng(5).integers(0, 60, 40), seed=5)
    pool = Pool([write_corpus(tmp_path / "a", texts[:25]), write_corpus(tmp_path / "b", texts[25:])])
    windows = cut_windows(pool.lengths(sequences), context_tokens=context_tokens, overlap_tokens=overlap_tokens)
    groups = list(group_by_length(windows.num_inputs_W, max_tokens=max_tokens))
    seen, scored_targets = [], {sequence: [] for sequence in sequences}
    for batch in micro_batches(pool, sequences, windows, groups):
        assert batch.tokens_BS.size <= max_tokens
        assert batch.tokens_BS.shape == batch.targets_BS.shape == batch.scored_BS.shape
        assert (batch.tokens_BS.dtype, batch.targets_BS.dtype, batch.scored_BS.dtype) == ("i8", "i8", "?")
        for row, window in enumerate(batch.windows_B.tolist()):
            seen.append(window)
            start, num_inputs = int(windows.start_W[window]), int(windows.num_inputs_W[window])
            sequence = sequences[int(windows.sequence_W[window])]
            text = texts[sequence].tolist()
            padding = [0] * (batch.tokens_BS.shape[1] - num_inputs)
            num_context = overlap_tokens if start else 0
            assert batch.tokens_BS[row].tolist() == text[start : start + num_inputs] + padding
            assert batch.targets_BS[row].tolist() == text[start + 1 : start + num_inputs + 1] + padding
            assert batch.scored_BS[row].tolist() == (
                [False] * num_context + [True] * (num_inputs - num_context) + [False] * len(padding)
            )
            scored_targets[sequence].append((start, batch.targets_BS[row][batch.scored_BS[row]].tolist()))
    assert sorted(seen) == list(range(len(windows)))
    for sequence, parts in scored_targets.items():
        assert [token for _, part in sorted(parts) for token in part] == texts[sequence][1:].tolist()
