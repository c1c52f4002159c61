"""Samples by perturbed values, against the probabilities of theory."""

import numpy as np
import pytest

from megatron_miniplm.runtime.hashing import perturbed

VALUES = np.array([1.2, 0.3, -0.4, 0.9, 0.0])

#: 99.9 % quantile of chi-square with 4 and with 9 degrees of freedom (Abramowitz and Stegun, table 26.8).
CHI_SQUARE_4, CHI_SQUARE_9 = 18.467, 27.877


def chosen(num_kept: int, temperature: float, num_seeds: int) -> np.ndarray:
    """(num_seeds, num_kept) places, the first drawn first."""
    ids_N = np.arange(len(VALUES)) + 40
    order = [perturbed(VALUES, ids_N, temperature=temperature, seed=seed) for seed in range(num_seeds)]
    return np.argsort(-np.array(order), axis=1)[:, :num_kept]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_first_is_drawn_in_proportion_to_the_exponential(temperature: float) -> None:
    num_seeds = 20_000
    found_N = np.bincount(chosen(1, temperature, num_seeds)[:, 0], minlength=len(VALUES))
    expected_N = num_seeds * np.exp(VALUES / temperature) / np.exp(VALUES / temperature).sum()
    assert ((found_N - expected_N) ** 2 / expected_N).sum() < CHI_SQUARE_4


def test_pairs_are_drawn_without_replacement_as_theory_says() -> None:
    """P({i, j}) = p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j), over ten pairs."""
    num_seeds = 20_000
    p = np.exp(VALUES) / np.exp(VALUES).sum()
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    expected = np.array([p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs])
    assert expected.sum() == pytest.approx(1)
    drawn = [tuple(sorted(pair)) for pair in chosen(2, 1.0, num_seeds).tolist()]
    found = np.array([drawn.count(pair) for pair in pairs])
    assert ((found - num_seeds * expected) ** 2 / (num_seeds * expected)).sum() < CHI_SQUARE_9


def test_a_cold_sample_is_the_top_set_and_minus_infinity_comes_last() -> None:
    order_N = perturbed(np.append(VALUES, -np.inf), np.arange(6), temperature=1e-6, seed=3)
    assert np.argsort(-order_N).tolist() == [0, 3, 1, 4, 2, 5]
    assert order_N[5] == -np.inf
