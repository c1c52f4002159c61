from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import on_ranks, sample

from megatron_miniplm.runtime.hashing import perturbed
from megatron_miniplm.selection.ranks import Ranks

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


def test_the_noise_of_a_sequence_is_its_own(tmp_path: Path) -> None:
    """Prefixes, blocks, pieces and ranks leave no trace: only the order of the sequences counts."""
    rng = np.random.default_rng(1)
    sequences = [[1, 2, 3]] * 300
    nll_N = rng.random(300).astype(np.float32)
    found = []
    for cut, blocks, num_ranks in (([300], 3, 1), ([100, 0, 200], 7, 1), ([100, 0, 200], 64, 2), ([50] * 6, 5, 3)):
        directory = tmp_path / f"{len(found)}"
        bounds = np.cumsum([0, *cut])
        corpora = [
            write_corpus(directory / f"part{part}", sequences[start:stop])
            for part, (start, stop) in enumerate(pairwise(bounds))
        ]
        teacher = write_scores(directory / "teacher", corpora, np.zeros(300), block_sequences=blocks)
        reference = write_scores(directory / "reference", corpora, nll_N, block_sequences=4)

        def select(ranks: Ranks, stores=(teacher, reference), output=directory / "refined") -> None:  # type: ignore[no-untyped-def]
            options = {"sampling": "gumbel", "temperature": 0.2, "seed": 11, "ranks": ranks}
            sample(stores[0].directory, stores[1].directory, output, **options)

        on_ranks(select, num_ranks)
        indices = [np.load(path) for path in sorted((directory / "refined").glob("*.indices.npy"))]
        found.append(np.concatenate([ids_K + start for ids_K, start in zip(indices, bounds, strict=False)]).tolist())
    assert len(found[0]) == 150
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0] != np.sort(np.argsort(-nll_N, kind="stable")[:150]).tolist(), "a sample, not the top set"
