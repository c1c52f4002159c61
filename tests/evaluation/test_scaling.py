"""Truth: the constants and losses that arXiv 2410.17215 publishes, scipy's optimizer, and laws that made the points."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.scaling import ScalingLaw, compute_equivalent_gain, fit, gain_interval, log_law, solve

CONVENTIONAL, MINIPLM = ScalingLaw(2.19e7, 0.41, 3.30), ScalingLaw(8.56e10, 0.59, 3.25)
#: Table 2: law, FLOPs of 1T tokens, and the losses after 1T and 10T tokens.
PUBLISHED = {
    "200M conventional": (CONVENTIONAL, 1.26e21, (3.35, 3.32)),
    "200M MiniPLM": (MINIPLM, 1.26e21, (3.28, 3.26)),
    "500M conventional": (ScalingLaw(2.73e8, 0.45, 3.06), 3.14e21, (3.12, 3.08)),
    "500M MiniPLM": (ScalingLaw(6.64e9, 0.52, 3.03), 3.14e21, (3.06, 3.04)),
    "1.2B conventional": (ScalingLaw(1.88e8, 0.43, 2.91), 7.30e21, (2.98, 2.94)),
    "1.2B MiniPLM": (ScalingLaw(4.29e8, 0.45, 2.86), 7.30e21, (2.92, 2.88)),
}
LARGEST_RUN_FLOPS = 6.3e19
COMPUTE_P = np.geomspace(1e18, LARGEST_RUN_FLOPS, 10)
EXTRAPOLATED_FLOPS = 1.26e21


def noisy_losses(law: ScalingLaw, compute_P: np.ndarray, noise: float, seed: int) -> np.ndarray:
    return law.loss(compute_P) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(compute_P)))


@pytest.mark.parametrize(("law", "compute_1t", "losses"), PUBLISHED.values(), ids=PUBLISHED)
def test_published_losses_follow_from_the_published_constants(law, compute_1t, losses):
    # Rounded constants move the 500M MiniPLM loss after 1T tokens by 0.014; all others agree to the two digits printed.
    assert law.loss(np.array([compute_1t, 10 * compute_1t])) == pytest.approx(losses, abs=0.02)
    agrees = np.abs(law.loss(compute_1t) - losses[0]) < 0.006
    assert agrees == (law is not PUBLISHED["500M MiniPLM"][0])
    assert law.loss(10 * compute_1t) == pytest.approx(losses[1], abs=0.006)


@pytest.mark.parametrize(("law", "compute_1t", "losses"), PUBLISHED.values(), ids=PUBLISHED)
def test_points_of_a_published_law_give_it_back(law, compute_1t, losses):
    compute_P = compute_1t * np.geomspace(1e-3, 0.05, 12)
    fitted = fit(compute_P, law.loss(compute_P), num_draws=100)
    range_C = compute_1t * np.geomspace(1e-3, 10, 50)
    assert fitted.loss(range_C) == pytest.approx(law.loss(range_C), abs=0.005)
    constants = (fitted.amplitude, fitted.exponent, fitted.irreducible_loss)
    assert constants == pytest.approx((law.amplitude, law.exponent, law.irreducible_loss), rel=1e-3)
    assert fitted.doubts == ()


def test_compute_inverts_loss_and_is_infinite_at_the_irreducible_loss():
    assert CONVENTIONAL.compute(CONVENTIONAL.loss(COMPUTE_P)) == pytest.approx(COMPUTE_P, rel=1e-9)
    assert np.isinf(CONVENTIONAL.compute([3.30, 3.2])).all()


def test_gain_of_laws_that_differ_by_a_factor_of_compute_is_that_factor():
    twice_as_fast = ScalingLaw(CONVENTIONAL.amplitude * 2**-0.41, 0.41, 3.30)
    assert compute_equivalent_gain(twice_as_fast, CONVENTIONAL, COMPUTE_P) == pytest.approx(2.0)
    # The paper's MiniPLM law falls below its baseline's irreducible loss between 50B and 1T tokens.
    assert np.isfinite(compute_equivalent_gain(MINIPLM, CONVENTIONAL, LARGEST_RUN_FLOPS))
    assert np.isinf(compute_equivalent_gain(MINIPLM, CONVENTIONAL, EXTRAPOLATED_FLOPS))


def test_90_percent_intervals_hold_the_truth_in_90_percent_of_200_draws():
    def quantities(law: ScalingLaw) -> np.ndarray:
        return np.stack([law.loss(EXTRAPOLATED_FLOPS), law.irreducible_loss, law.exponent])

    truth = quantities(CONVENTIONAL)
    held = []
    for draw in range(200):
        losses_P = noisy_losses(CONVENTIONAL, COMPUTE_P, 0.005, draw)
        low, high = fit(COMPUTE_P, losses_P, num_draws=200, seed=draw).interval(quantities)
        held.append((low <= truth) & (truth <= high))
    assert ((np.mean(held, axis=0) >= 0.85) & (np.mean(held, axis=0) <= 0.95)).all(), np.mean(held, axis=0)


def test_runs_told_apart_widen_intervals_to_what_differs_between_runs():
    compute_P, runs_P = np.tile(COMPUTE_P, 3), [f"run {number}" for number in range(3) for _ in COMPUTE_P]
    held = {"runs": [], "points": []}
    for draw in range(60):
        generator = np.random.default_rng(draw)
        of_run_P = np.repeat(0.004 * generator.standard_normal(3), len(COMPUTE_P))
        loss_P = CONVENTIONAL.loss(compute_P) * np.exp(of_run_P + 0.0005 * generator.standard_normal(len(compute_P)))
        for names in (runs_P, None):
            fitted = fit(compute_P, loss_P, runs_P=names, num_draws=100, seed=draw)
            low, high = fitted.interval(lambda law: law.loss(LARGEST_RUN_FLOPS))
            held[fitted.resampled].append(low <= CONVENTIONAL.loss(LARGEST_RUN_FLOPS) <= high)
    assert 0.83 <= np.mean(held["runs"]) <= 0.97
    assert np.mean(held["points"]) < 0.75


def test_runs_that_share_no_computes_fall_back_to_points():
    fitted = fit(COMPUTE_P, noisy_losses(CONVENTIONAL, COMPUTE_P, 0.002, 0), runs_P=["small"] * 5 + ["large"] * 5)
    assert (fitted.resampled, fitted.num_runs) == ("points", 2)


def test_one_spoilt_point_hardly_moves_the_curve():
    losses_P = noisy_losses(CONVENTIONAL, np.geomspace(1e18, LARGEST_RUN_FLOPS, 16), 0.001, 0)
    clean = fit(np.geomspace(1e18, LARGEST_RUN_FLOPS, 16), losses_P, num_draws=100)
    losses_P[12] *= 1.3
    spoilt = fit(np.geomspace(1e18, LARGEST_RUN_FLOPS, 16), losses_P, num_draws=100)
    assert spoilt.loss(EXTRAPOLATED_FLOPS) == pytest.approx(clean.loss(EXTRAPOLATED_FLOPS), abs=0.01)


def test_minima_are_those_of_scipy_from_many_starts():
    log_compute_P = np.log(COMPUTE_P) - np.log(COMPUTE_P).mean()
    generator = np.random.default_rng(0)
    noise_FP = 0.01 * generator.standard_normal((12, len(COMPUTE_P)))
    log_loss_FP = np.log(CONVENTIONAL.loss(COMPUTE_P)) + noise_FP
    for delta in (1e-3, 0.01):

        def cost(parameters_K: np.ndarray, log_loss_P: np.ndarray, delta: float = delta) -> float:
            size_P = np.abs(log_law(parameters_K[None], log_compute_P)[0] - log_loss_P)
            return np.where(size_P <= delta, size_P**2 / 2, delta * (size_P - delta / 2)).sum()

        for parameters_K, log_loss_P in zip(solve(log_compute_P, log_loss_FP, delta), log_loss_FP, strict=True):
            best = min(
                least_squares(
                    lambda tried_K, log_loss_P=log_loss_P: log_law(tried_K[None], log_compute_P)[0] - log_loss_P,
                    (np.log(0.4), log_exponent, np.log(share * np.exp(log_loss_P.min()))),
                    loss="huber",
                    f_scale=delta,
                ).cost
                for log_exponent in np.log((0.1, 0.4, 1.0))
                for share in (0.6, 0.95)
            )
            assert cost(parameters_K, log_loss_P) <= best * (1 + 1e-3)


def test_equal_seeds_give_equal_intervals_and_methods_draw_apart():
    losses_P = noisy_losses(CONVENTIONAL, COMPUTE_P, 0.005, 1)
    first, again, other = (fit(COMPUTE_P, losses_P, num_draws=200, seed=seed) for seed in ((3, 0), (3, 0), (3, 1)))
    assert (first.draws.exponent == again.draws.exponent).all()
    assert abs(np.corrcoef(first.draws.exponent, other.draws.exponent)[0, 1]) < 0.3
    low, high = gain_interval(other, first, LARGEST_RUN_FLOPS)
    assert low < 1 < high
    with pytest.raises(InputError, match="same num_draws"):
        gain_interval(first, fit(COMPUTE_P, losses_P, num_draws=100), LARGEST_RUN_FLOPS)


def test_a_power_law_without_a_floor_leaves_the_irreducible_loss_open():
    fitted = fit(COMPUTE_P, noisy_losses(ScalingLaw(300.0, 0.1, 1e-9), COMPUTE_P, 0.001, 0), num_draws=200)
    low, high = fitted.interval(lambda law: law.irreducible_loss)
    assert fitted.doubts
    assert low < 0.05 < 0.1 < high


@pytest.mark.parametrize(
    ("compute_P", "loss_P", "message"),
    [
        ([1e18, 2e18, 4e18, 4e18], [4, 3.9, 3.8, 3.7], "3 distinct computes.*at least 4: add points"),
        ([1e18, 2e18, 4e18, 8e18], [4, 4, 4, 4], "do not fall with compute"),
        ([1e18, 2e18, 4e18, 8e18], [3.7, 3.8, 3.9, 4], "do not fall with compute"),
        ([1e18, 2e18, 4e18, 8e18], [4, float("nan"), 3.8, 3.7], "point 1 has the loss nan"),
        ([1e18, 2e18, 4e18, 8e18], [4, 3.9, -3.8, 3.7], "point 2 has the loss -3.8"),
        ([0.0, 2e18, 4e18, 8e18], [4, 3.9, 3.8, 3.7], "point 0 has the compute 0,"),
        ([1e18, 2e18, 4e18, float("inf")], [4, 3.9, 3.8, 3.7], "point 3 has the compute inf"),
        ([1e18, 2e18, 4e18], [4, 3.9, 3.8, 3.7], "lists of one length"),
    ],
)
def test_points_that_are_no_curve_are_refused(compute_P, loss_P, message):
    with pytest.raises(InputError, match=message):
        fit(compute_P, loss_P)


def test_too_few_draws_are_refused():
    with pytest.raises(InputError, match="10 bootstrap draws are too few"):
        fit(COMPUTE_P, CONVENTIONAL.loss(COMPUTE_P), num_draws=10)
