"""The pass over the scores, against NumPy over all of them at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported_corpora import Scored
from selections import seal

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.reports.histograms import RATIOS, what_if
from megatron_miniplm.reports.reopening import ReopenedSelection
from megatron_miniplm.reports.tally import (
    JUST_DROPPED,
    JUST_KEPT,
    LEAST_GAINED,
    MOST_GAINED,
    BestExamples,
    Example,
    Tally,
    TallyPass,
    best_places,
)
from megatron_miniplm.selection.candidates import Attributes


def tally_of(selection: Path, *others: Path, num_examples: int = 7) -> Tally:
    reopened = ReopenedSelection.of(Selection.open(selection))
    compared = [Selection.open(other) for other in others]
    advanced: list[int] = []
    tally = TallyPass(reopened, Attributes(directory=selection), compared, num_examples).run(advanced.append)
    assert sum(advanced) == reopened.corpus.num_sequences
    return tally


def test_counts_by_prefix_and_length(scored: Scored) -> None:
    selection = scored.select(ratio=0.5)
    tally, kept_N = tally_of(selection), scored.kept(selection)
    for prefix in range(3):
        is_in_N = scored.prefix_N == prefix
        known_N = is_in_N & (scored.num_scored_N > 0)
        assert tally.prefixes.sequences[prefix] == is_in_N.sum()
        assert tally.prefixes.tokens[prefix] == scored.length_N[is_in_N].sum()
        assert tally.prefixes.kept_sequences[prefix] == (is_in_N & kept_N).sum()
        assert tally.prefixes.kept_tokens[prefix] == scored.length_N[is_in_N & kept_N].sum()
        assert tally.prefixes.num_scored[prefix] == known_N.sum()
        assert tally.prefixes.value_sums[prefix] == pytest.approx(scored.difference_N[known_N].sum())
        assert tally.prefixes.kept_value_sums[prefix] == pytest.approx(scored.difference_N[known_N & kept_N].sum())
    digits_N = np.array([int(length).bit_length() for length in scored.length_N])
    for digits in range(33):
        assert tally.lengths.sequences[digits] == (digits_N == digits).sum()
        assert tally.lengths.kept_tokens[digits] == scored.length_N[kept_N & (digits_N == digits)].sum()


def test_histograms_hold_every_scored_sequence(scored: Scored) -> None:
    selection = scored.select(ratio=0.3)
    tally, kept_N = tally_of(selection), scored.kept(selection)
    value_N, known_N = scored.difference_N, scored.num_scored_N > 0
    for column, is_in_N in (
        (tally.histograms.values.sequences, known_N),
        (tally.histograms.values.kept_sequences, known_N & kept_N),
    ):
        found, _ = np.histogram(value_N[is_in_N], tally.histograms.axis.edges)
        assert column.sum() == is_in_N.sum()
        # a value on an edge may fall on either side of it
        assert np.abs(np.cumsum(column[1:-1]) - np.cumsum(found)).max() <= 1
    assert tally.histograms.nll_TRK.sum() == known_N.sum()
    assert tally.histograms.nll_TRK[..., 1].sum() == (known_N & kept_N).sum()
    assert tally.histograms.teacher is not None
    teacher_N = (scored.teacher_N[known_N] / scored.num_scored_N[known_N]).astype(np.float32)
    found, _ = np.histogram(teacher_N, tally.histograms.teacher.edges)
    assert np.abs(tally.histograms.nll_TRK.sum(axis=(1, 2))[1:-1] - found).sum() <= 4


def test_examples_are_the_first_of_a_full_sort(scored: Scored) -> None:
    selection = scored.select(ratio=0.4)
    tally, kept_N, value_N = tally_of(selection), scored.kept(selection), scored.difference_N
    by_value = sorted(
        np.flatnonzero(np.isfinite(value_N)).tolist(), key=lambda sequence: (-value_N[sequence], sequence)
    )
    kept = [sequence for sequence in by_value if kept_N[sequence]]
    dropped = [sequence for sequence in by_value if not kept_N[sequence]]
    expected = {
        MOST_GAINED: kept[:7],
        LEAST_GAINED: by_value[::-1][:7],
        JUST_KEPT: kept[::-1][:7],
        JUST_DROPPED: dropped[:7],
    }
    assert {name: [one.sequence for one in found] for name, found in tally.examples.items()} == expected
    example = tally.examples[MOST_GAINED][0]
    assert example.value == pytest.approx(value_N[example.sequence])
    assert example.reference is not None
    assert example.teacher is not None
    assert example.reference - example.teacher == pytest.approx(example.value)
    assert (example.num_tokens, example.is_kept) == (scored.length_N[example.sequence], True)


@pytest.mark.parametrize("settings", [{}, {"min_tokens": 30}], ids=str)
def test_other_ratios_are_exact_to_the_stated_resolution(scored: Scored, settings: dict[str, Any]) -> None:
    tally = tally_of(scored.select(ratio=0.5, **settings))
    eligible_N = scored.length_N >= settings.get("min_tokens", 0)
    value_N, length_N = scored.difference_N[eligible_N], scored.length_N[eligible_N]
    order_N = np.argsort(-value_N, kind="stable")
    width = tally.histograms.axis.width
    for ratio in RATIOS:
        found, num_kept = what_if(tally.histograms, tally.num_eligible, ratio), int(ratio * len(value_N))
        kept_K = order_N[:num_kept]
        assert found.num_sequences == num_kept
        assert found.threshold == pytest.approx(value_N[kept_K[-1]], abs=width)
        in_bin_N = np.abs(value_N - value_N[kept_K[-1]]) <= width
        assert abs(found.num_tokens - length_N[kept_K].sum()) <= length_N[in_bin_N].sum()
        assert found.mean_value == pytest.approx(value_N[kept_K].mean(), abs=width)
        assert found.negative_fraction == pytest.approx((value_N[kept_K] < 0).mean(), abs=2 / num_kept)


def test_a_ratio_that_keeps_what_has_no_score(scored: Scored) -> None:
    tally = tally_of(scored.select(ratio=0.5))
    found = what_if(tally.histograms, tally.num_eligible, 1.0)
    assert found.num_sequences == len(scored.length_N)
    assert found.threshold is None
    assert found.num_tokens == scored.length_N[scored.num_scored_N > 0].sum()
    known_N = np.isfinite(scored.difference_N)
    assert found.mean_value == pytest.approx(scored.difference_N[known_N].mean())
    assert found.negative_fraction == pytest.approx((scored.difference_N[known_N] < 0).mean())


def test_the_overlap_with_other_selections(scored: Scored) -> None:
    one, other = scored.select(ratio=0.5), scored.select("other", ratio=0.4, sampling="gumbel")
    (found,) = tally_of(one, other).overlaps
    one_N, other_N = scored.kept(one), scored.kept(other)
    assert (found.sequences[0], found.kept_sequences[0]) == (other_N.sum(), (one_N & other_N).sum())
    assert found.tokens[0] == scored.length_N[other_N].sum()
    assert found.kept_tokens[0] == scored.length_N[one_N & other_N].sum()


def test_a_sample_has_nothing_near_a_threshold(scored: Scored) -> None:
    tally = tally_of(scored.select(ratio=0.5, sampling="gumbel"))
    assert not tally.examples[JUST_KEPT]
    assert len(tally.examples[MOST_GAINED]) == 7


def test_indices_that_are_no_selection(scored: Scored) -> None:
    selection = scored.select(ratio=0.5)
    path = selection / "0000_web.indices.npy"
    indices = np.load(path)
    for damaged in (indices[::-1], indices + 1800 - indices[-1]):
        np.save(path, np.ascontiguousarray(damaged))
        seal(selection)
        with pytest.raises(CorruptArtifactError, match=r"web\.indices\.npy does not hold ascending numbers below 1800"):
            tally_of(selection)


def example(sequence: int) -> Example:
    return Example(sequence=sequence, value=0.0, teacher=None, reference=None, num_tokens=1, is_kept=True)


@given(
    keys=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), max_size=60),
    num_wanted=st.integers(0, 8),
    piece_size=st.integers(1, 20),
    lag=st.integers(0, 3),
)
def test_pieces_give_what_a_sort_gives(keys: list[float], num_wanted: int, piece_size: int, lag: int) -> None:
    """Also with bounds that are some pieces old, as threads see them."""
    best = BestExamples(num_wanted)
    bounds = [best.bound]
    for start in range(0, len(keys), piece_size):
        key_N = np.array(keys[start : start + piece_size])
        bound = bounds[max(0, len(bounds) - 1 - lag)]
        places = best_places(key_N, num_wanted, bound).tolist()
        assert all(key_N[place] > bound for place in places)
        best.add([(float(key_N[place]), -(start + place), example(start + place)) for place in places])
        bounds.append(best.bound)
    finite = [sequence for sequence, key in enumerate(keys) if key > -np.inf]
    expected = sorted(finite, key=lambda sequence: (-keys[sequence], sequence))[:num_wanted]
    assert [one.sequence for one in best.in_order()] == expected
