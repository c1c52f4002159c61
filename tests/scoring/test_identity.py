import numpy as np
import pytest

from megatron_miniplm.scoring.identity import is_sampled


def test_a_sequence_is_chosen_by_its_number_alone() -> None:
    whole = is_sampled(range(1000), fraction=0.3, seed=7)
    parts = [is_sampled(range(start, min(start + 37, 1000)), fraction=0.3, seed=7) for start in range(0, 1000, 37)]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.5, 0.9])
def test_the_share_is_the_fraction(fraction: float) -> None:
    num_sequences = 100_000
    share = is_sampled(range(num_sequences), fraction=fraction, seed=1).mean()
    assert abs(share - fraction) < 5 * np.sqrt(fraction * (1 - fraction) / num_sequences)


def test_all_and_none() -> None:
    assert is_sampled(range(100), fraction=1.0, seed=0).all()
    assert not is_sampled(range(100), fraction=0.0, seed=0).any()


def test_a_larger_fraction_holds_the_smaller_one() -> None:
    small, large = (is_sampled(range(5000), fraction=fraction, seed=3) for fraction in (0.1, 0.4))
    assert np.all(large[small])


def test_seeds_and_neighbours_are_independent() -> None:
    one, other = (is_sampled(range(100_000), fraction=0.5, seed=seed) for seed in (0, 1))
    for left, right in ((one, other), (one[:-1], one[1:])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.02
