"""Noise of replicates and intervals, against quantiles and moments in closed form."""

import math

import numpy as np
import pytest

from megatron_miniplm.evaluation.bootstrap import MOST_NOISE, noise_of_points, noise_of_runs, percentile_interval


def test_equal_shares_lie_outside_an_interval() -> None:
    draws = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert percentile_interval(draws, 0.9) == (5, 95)
    low, high = percentile_interval(np.stack([draws, -draws]), 0.9)
    assert (low.tolist(), high.tolist()) == ([5, -96], [95, -6])


def test_infinite_draws_give_infinite_ends() -> None:
    assert percentile_interval(np.array([1.0, 2.0, math.inf, math.inf]), 0.5) == (1, math.inf)
    assert percentile_interval(np.full(4, math.inf), 0.5) == (math.inf, math.inf)


def test_noise_of_points_has_the_variance_that_the_residuals_estimate() -> None:
    """Of 103 residuals and 3 parameters; the size that is drawn anew multiplies it by freedom / (freedom - 2)."""
    generator = np.random.default_rng(0)
    residual_P = 0.01 * generator.standard_normal(103) + 7
    noise_BP = noise_of_points(residual_P, 3, 4000, generator)
    assert noise_BP.shape == (4000, 103)
    assert noise_BP.mean() == pytest.approx(0, abs=1e-4)
    assert noise_BP.var() == pytest.approx(residual_P.var() * 103 / 100 * 100 / 98, rel=0.02)


def test_noise_is_limited() -> None:
    noise_BP = noise_of_points(np.array([-1.0, 1.0, -1.0, 1.0]), 3, 1000, np.random.default_rng(0))
    assert np.abs(noise_BP).max() == MOST_NOISE


def test_points_of_a_run_keep_what_they_have_in_common() -> None:
    """Three runs that differ by a constant, of a mean: every replicate shifts whole runs."""
    run_P = np.repeat(np.arange(3), 5)
    residual_P = np.array([-0.02, 0.0, 0.02])[run_P]
    noise_BP = noise_of_runs(residual_P, np.ones((15, 1)), run_P, 1.0, 50, np.random.default_rng(0))
    assert noise_BP is not None
    by_run_BGP = noise_BP.reshape(50, 3, 5)
    assert by_run_BGP == pytest.approx(np.repeat(by_run_BGP[..., :1], 5, axis=2))
    assert by_run_BGP.std(axis=0)[1] == pytest.approx(0, abs=1e-12)
    assert (by_run_BGP.std(axis=0)[[0, 2]] > 0).all()


def test_runs_that_do_not_overlap_tell_nothing_of_runs() -> None:
    """Each has a parameter of its own, which takes all that is left."""
    run_P = np.repeat(np.arange(2), 4)
    jacobian_PK = np.stack([run_P == 0, run_P == 1], axis=1).astype(float)
    assert noise_of_runs(np.zeros(8), jacobian_PK, run_P, 1.0, 10, np.random.default_rng(0)) is None
