"""Where training leads: L(C) = L_inf + A * C^-alpha, fitted to losses by compute, with bootstrap intervals.

The objective is that of Hoffmann et al. (2022, arXiv 2203.15556, approach 3; Besiroglu et al. 2024, arXiv 2404.10102):
the Huber loss of log losses, with the law's two terms added by log-sum-exp, here for one variable. A bootstrap needs
many fits: all F of them advance together by Levenberg-Marquardt with the analytic Jacobian. The tests compare their
minima with scipy's `least_squares`, which does one fit at a time.

Letters of axes: P points, B bootstrap draws, F fits, D fits that still move, K the three parameters of a fit: log A at
the centre of the points, log alpha, log L_inf. Compute is in FLOPs throughout, losses in nats per token; in the solver,
computes are logarithms relative to that centre.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.bootstrap import noise_of_points, noise_of_runs, percentile_interval

NUM_PARAMETERS = 3
#: A fit that comes to rest at one of these has no exponent that the points determine.
EXPONENT_LIMITS = (1e-3, 4.0)
#: The least irreducible loss, as a share of the lowest loss; it stands for none.
LEAST_IRREDUCIBLE_SHARE = 1e-6
LEAST_STARTING_SHARE = 0.05
STARTING_EXPONENTS = np.geomspace(0.01, 3.0, 48)
MOST_STEPS = 80
#: Parameters are logarithms.
LONGEST_STEP = 3.0
#: A fit rests when a step lowers its objective by less than this share, or when no step however short lowers it.
LEAST_GAIN = 1e-10
MOST_DAMPING = 1e10
#: Hoffmann et al.'s. Among points that scatter more, nearly all would count by their sign only, which wastes what they
#: tell, so `fit` takes a wider one there.
LEAST_HUBER_DELTA = 1e-3
#: Huber's constant: in units of the scatter, 95 % of the efficiency of least squares where the noise is normal.
HUBER_DELTA_IN_SCATTERS = 1.345
FEWEST_COMPUTES = NUM_PARAMETERS + 1
#: An irreducible loss below this share of the lowest loss cannot be told from none.
SMALL_IRREDUCIBLE_SHARE = 0.01
LEAST_DRAWS = 100


@dataclass(frozen=True)
class ScalingLaw:
    """L(C) = irreducible_loss + amplitude * C^-exponent.

    The three may be arrays of one shape, for many laws; `loss` and `compute` broadcast against them.
    """

    amplitude: Any
    exponent: Any
    irreducible_loss: Any

    def loss(self, compute: Any) -> Any:
        """Nats a token after `compute` FLOPs."""
        return self.irreducible_loss + np.exp(np.log(self.amplitude) - self.exponent * np.log(compute))

    def compute(self, loss: Any) -> Any:
        """FLOPs after which the law is at `loss`; infinite at and below the irreducible loss."""
        reducible_loss = np.maximum(np.asarray(loss, np.float64) - self.irreducible_loss, 0.0)
        with np.errstate(divide="ignore", over="ignore"):
            return np.exp((np.log(self.amplitude) - np.log(reducible_loss)) / self.exponent)


@dataclass(frozen=True, eq=False)
class FittedScalingLaw(ScalingLaw):
    """A law fitted to points, with bootstrap draws of its three constants.

    Attributes:
        draws: the constants of B replicates, float64 arrays; intervals of whatever follows from the law use these.
        resampled: what the intervals stand for: scatter of single points around the curve, or differences of runs.
        num_points: that were fitted.
        num_runs: that the points came from; 0 where not named.
        scatter: robust standard deviation of relative residuals.
        doubts: sentences on what the points do not determine; empty for a sound fit.
    """

    draws: ScalingLaw = field(repr=False)
    resampled: Literal["points", "runs"]
    num_points: int
    num_runs: int
    scatter: float
    doubts: tuple[str, ...]

    def interval(self, quantity: Callable[[ScalingLaw], Any], confidence: float = 0.9) -> tuple[Any, Any]:
        """Percentile interval of a quantity that follows from the law.

        Args:
            quantity: of a law; its last axis is that of the law's constants, as in
                `lambda law: law.loss(compute_C[:, None])` for an interval at each of several computes.
        """
        return percentile_interval(quantity(self.draws), confidence)


def fit(
    compute_P: Sequence[float] | np.ndarray,
    loss_P: Sequence[float] | np.ndarray,
    *,
    runs_P: Sequence[str] | None = None,
    num_draws: int = 1000,
    seed: int | Sequence[int] = 0,
) -> FittedScalingLaw:
    """Fit the law to points, robustly against single bad ones, and draw bootstrap replicates.

    Args:
        compute_P: FLOPs; at least four distinct values.
        loss_P: nats a token.
        runs_P: the training run that each point comes from. Where two or more runs have several points, runs are
            resampled as wholes, since points of a run share its seed and its data. None: points are independent.
        num_draws: bootstrap replicates.
        seed: of the draws. Laws that are compared need different ones, or their draws go up and down together.

    Raises:
        InputError: a value is not a positive number, there are too few computes, or losses do not fall with compute.
    """
    compute_P, loss_P = np.asarray(compute_P, np.float64), np.asarray(loss_P, np.float64)
    _check(compute_P, loss_P, runs_P)
    if num_draws < LEAST_DRAWS:
        raise InputError(f"{num_draws} bootstrap draws are too few for an interval: take {LEAST_DRAWS} or more")
    centre = float(np.log(compute_P).mean())
    log_compute_P, log_loss_P = np.log(compute_P) - centre, np.log(loss_P)
    parameters_FK, delta, scatter = _solve_point(log_compute_P, log_loss_P)
    fitted_P = log_law(parameters_FK, log_compute_P)[0]
    generator = np.random.default_rng(seed)
    noise_BP = None
    names, run_P = np.unique(runs_P, return_inverse=True) if runs_P is not None else (np.array([]), None)
    if run_P is not None and 1 < len(names) < len(loss_P):
        jacobian_PK = jacobian(parameters_FK, log_compute_P)[0]
        noise_BP = noise_of_runs(log_loss_P - fitted_P, jacobian_PK, run_P, delta, num_draws, generator)
    by_runs = noise_BP is not None
    if noise_BP is None:
        noise_BP = noise_of_points(log_loss_P - fitted_P, NUM_PARAMETERS, num_draws, generator)
    draws = _law(solve(log_compute_P, fitted_P + noise_BP, np.inf if by_runs else delta), centre)
    law = _law(parameters_FK[0], centre)
    return FittedScalingLaw(
        amplitude=float(law.amplitude),
        exponent=float(law.exponent),
        irreducible_loss=float(law.irreducible_loss),
        draws=draws,
        resampled="runs" if by_runs else "points",
        num_points=len(loss_P),
        num_runs=len(names),
        scatter=scatter,
        doubts=_doubts(law, draws, float(loss_P.min())),
    )


def compute_equivalent_gain(method: ScalingLaw, baseline: ScalingLaw, compute: Any) -> Any:
    """How many times `compute` the baseline needs for the loss that the method has after `compute` FLOPs.

    Infinite where the baseline never gets there: its irreducible loss is not below.
    """
    return baseline.compute(method.loss(compute)) / compute


def gain_interval(
    method: FittedScalingLaw, baseline: FittedScalingLaw, compute: float, confidence: float = 0.9
) -> tuple[float, float]:
    """Interval of `compute_equivalent_gain`; takes the draws of the two laws for independent.

    Raises:
        InputError: the laws have different numbers of draws.
    """
    if len(method.draws.exponent) != len(baseline.draws.exponent):
        raise InputError("laws are compared draw by draw: fit both with the same num_draws")
    low, high = percentile_interval(compute_equivalent_gain(method.draws, baseline.draws, compute), confidence)
    return float(low), float(high)


def _solve_point(log_compute_P: np.ndarray, log_loss_P: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Parameters of the fit with F = 1, the Huber delta, and the scatter that it was chosen by."""
    first_FK = solve(log_compute_P, log_loss_P[None], LEAST_HUBER_DELTA)
    size_P = np.sort(np.abs(log_law(first_FK, log_compute_P)[0] - log_loss_P))
    # The curve goes through about as many points as it has parameters; they say nothing of the scatter.
    scatter = 1.4826 * float(np.median(size_P[NUM_PARAMETERS:]))
    delta = max(LEAST_HUBER_DELTA, HUBER_DELTA_IN_SCATTERS * scatter)
    return solve(log_compute_P, log_loss_P[None], delta), delta, scatter


def _law(parameters: np.ndarray, centre: float) -> ScalingLaw:
    """Of parameters_K or parameters_FK, without the solver's logarithms and centre."""
    log_reducible, log_exponent, log_irreducible = parameters.T
    exponent = np.exp(log_exponent)
    return ScalingLaw(np.exp(log_reducible + exponent * centre), exponent, np.exp(log_irreducible))


def _check(compute_P: np.ndarray, loss_P: np.ndarray, runs_P: Sequence[str] | None) -> None:
    if compute_P.shape != loss_P.shape or compute_P.ndim != 1 or (runs_P is not None and len(runs_P) != len(loss_P)):
        raise InputError("compute, loss and run of the points must be lists of one length")
    for name, values_P in (("compute", compute_P), ("loss", loss_P)):
        wrong_P = ~(np.isfinite(values_P) & (values_P > 0))
        if wrong_P.any():
            at = int(np.argmax(wrong_P))
            raise InputError(f"point {at} has the {name} {values_P[at]:g}, not a positive number: mend or drop it")
    num_computes = len(np.unique(compute_P))
    if num_computes < FEWEST_COMPUTES:
        raise InputError(
            f"the points have {num_computes} distinct computes, and a curve of {NUM_PARAMETERS} constants needs at "
            f"least {FEWEST_COMPUTES}: add points at other computes"
        )
    order_P = np.argsort(compute_P, kind="stable")
    if _concordance(compute_P[order_P], loss_P[order_P]) >= 0:
        raise InputError("the losses do not fall with compute, so there is no curve to extrapolate: check the points")


def _concordance(ascending_P: np.ndarray, values_P: np.ndarray) -> int:
    """Pairs of points that rise together, minus pairs that do not (Kendall's statistic)."""
    return sum(
        int(np.sign((values_P[at + 1 :] - values_P[at]) * (ascending_P[at + 1 :] > ascending_P[at])).sum())
        for at in range(len(values_P))
    )


def _doubts(law: ScalingLaw, draws: ScalingLaw, lowest_loss: float) -> tuple[str, ...]:
    doubts = []
    small_loss = SMALL_IRREDUCIBLE_SHARE * lowest_loss
    low, high = EXPONENT_LIMITS[0] * 1.01, EXPONENT_LIMITS[1] * 0.99
    at_limit_B = (draws.exponent < low) | (draws.exponent > high) | (draws.irreducible_loss < small_loss)
    if law.irreducible_loss < small_loss:
        doubts.append("the points do not bend towards an irreducible loss (a power law alone fits): its value is open")
    if not low < law.exponent < high:
        doubts.append(
            f"the exponent is at the limit of what is searched ({EXPONENT_LIMITS[0]:g} to {EXPONENT_LIMITS[1]:g}): the "
            "points do not determine it"
        )
    if not doubts and at_limit_B.mean() > 0.05:
        doubts.append(
            f"in {at_limit_B.mean():.0%} of the bootstrap draws the constants cannot be told apart (no irreducible "
            "loss, or an exponent at its limit): do not extrapolate far"
        )
    return tuple(doubts)


def solve(log_compute_P: np.ndarray, log_loss_FP: np.ndarray, huber_delta: float) -> np.ndarray:
    """Fit the law to F sets of losses at the same computes; each starts from the best of a grid of exponents.

    Args:
        log_compute_P: natural logarithm, minus its mean; at least two distinct.
        log_loss_FP: natural logarithm.
        huber_delta: residual of a log loss beyond which the penalty grows linearly.

    Returns:
        parameters_FK, float64.
    """
    lowest_F = log_loss_FP.min(axis=1) + np.log(LEAST_IRREDUCIBLE_SHARE)
    parameters_FK = _starts(log_compute_P, log_loss_FP, huber_delta)
    objective_F = _objective(log_law(parameters_FK, log_compute_P) - log_loss_FP, huber_delta)
    damping_F = np.full(len(log_loss_FP), 1e-3)
    moving_D = np.arange(len(log_loss_FP))
    for _ in range(MOST_STEPS):
        start_DK = parameters_FK[moving_D]
        step_DK = _step(start_DK, log_compute_P, log_loss_FP[moving_D], huber_delta, damping_F[moving_D])
        longest_D1 = np.abs(step_DK).max(axis=1, keepdims=True)
        tried_DK = start_DK + step_DK * np.minimum(1.0, LONGEST_STEP / np.maximum(longest_D1, LONGEST_STEP))
        tried_DK[:, 1] = np.clip(tried_DK[:, 1], *np.log(EXPONENT_LIMITS))
        tried_DK[:, 2] = np.maximum(tried_DK[:, 2], lowest_F[moving_D])
        before_D = objective_F[moving_D]
        after_D = _objective(log_law(tried_DK, log_compute_P) - log_loss_FP[moving_D], huber_delta)
        better_D = after_D <= before_D
        parameters_FK[moving_D[better_D]] = tried_DK[better_D]
        objective_F[moving_D[better_D]] = after_D[better_D]
        damping_F[moving_D] = np.where(better_D, np.maximum(damping_F[moving_D] / 5, 1e-12), damping_F[moving_D] * 5)
        at_rest_D = better_D & (before_D - after_D <= LEAST_GAIN * before_D + np.finfo(float).tiny)
        moving_D = moving_D[~at_rest_D & (damping_F[moving_D] < MOST_DAMPING)]
        if not len(moving_D):
            break
    return parameters_FK


def log_law(parameters_FK: np.ndarray, log_compute_P: np.ndarray) -> np.ndarray:
    """Log losses of F laws at P computes."""
    log_reducible_F, log_exponent_F, log_irreducible_F = parameters_FK.T
    reducible_FP = log_reducible_F[:, None] - np.exp(log_exponent_F)[:, None] * log_compute_P
    return np.logaddexp(reducible_FP, log_irreducible_F[:, None])


def jacobian(parameters_FK: np.ndarray, log_compute_P: np.ndarray) -> np.ndarray:
    """Derivatives of `log_law`, shape (F, P, K)."""
    exponent_F = np.exp(parameters_FK[:, 1])
    irreducible_share_FP = np.exp(parameters_FK[:, 2:] - log_law(parameters_FK, log_compute_P))
    reducible_share_FP = 1.0 - irreducible_share_FP
    by_exponent_FP = -exponent_F[:, None] * log_compute_P * reducible_share_FP
    return np.stack([reducible_share_FP, by_exponent_FP, irreducible_share_FP], axis=2)


def _step(
    parameters_DK: np.ndarray,
    log_compute_P: np.ndarray,
    log_loss_DP: np.ndarray,
    huber_delta: float,
    damping_D: np.ndarray,
) -> np.ndarray:
    residual_DP = log_law(parameters_DK, log_compute_P) - log_loss_DP
    weight_DP = np.minimum(1.0, huber_delta / np.maximum(np.abs(residual_DP), np.finfo(float).tiny))
    jacobian_DPK = jacobian(parameters_DK, log_compute_P)
    weighted_DKP = (jacobian_DPK * weight_DP[..., None]).transpose(0, 2, 1)
    gradient_DK = (weighted_DKP @ residual_DP[..., None])[..., 0]
    normal_DKK = weighted_DKP @ jacobian_DPK
    diagonal = np.arange(NUM_PARAMETERS)
    # The constant keeps the matrix regular where a parameter has no effect: a term of the law that is all but zero.
    normal_DKK[:, diagonal, diagonal] += damping_D[:, None] * normal_DKK[:, diagonal, diagonal] + 1e-14
    return -np.linalg.solve(normal_DKK, gradient_DK[..., None])[..., 0]


def _objective(residual_FP: np.ndarray, huber_delta: float) -> np.ndarray:
    size_FP = np.abs(residual_FP)
    linear_FP = huber_delta * (size_FP - 0.5 * huber_delta)
    return np.where(size_FP <= huber_delta, 0.5 * size_FP**2, linear_FP).sum(axis=1)


def _starts(log_compute_P: np.ndarray, log_loss_FP: np.ndarray, huber_delta: float) -> np.ndarray:
    """For each exponent the two linear constants by weighted least squares; of these laws the best by the objective.

    The grid must be fine: where no compute tells L_inf from A, the objective is a long narrow valley that steps follow
    slowly.
    """
    loss_FP = np.exp(log_loss_FP)
    weight_FP = loss_FP**-2.0  # so that squares of loss residuals are those of relative ones
    # From an irreducible loss of nearly nothing there is no slope to go by.
    least_F = LEAST_STARTING_SHARE * loss_FP.min(axis=1)
    best_FK = np.empty((len(loss_FP), NUM_PARAMETERS))
    best_F = np.full(len(loss_FP), np.inf)
    mean_loss_F = np.average(loss_FP, axis=1, weights=weight_FP)
    for exponent in STARTING_EXPONENTS:
        power_P = np.exp(-exponent * log_compute_P)
        mean_power_F = weight_FP @ power_P / weight_FP.sum(axis=1)
        centred_FP = weight_FP * (power_P - mean_power_F[:, None])
        reducible_F = (centred_FP * loss_FP).sum(axis=1) / (centred_FP @ power_P)
        irreducible_F = mean_loss_F - reducible_F * mean_power_F
        irreducible_F = np.clip(irreducible_F, least_F, mean_loss_F)
        reducible_F = (weight_FP * (loss_FP - irreducible_F[:, None])) @ power_P / (weight_FP @ power_P**2)
        reducible_F = np.maximum(reducible_F, least_F)
        start_FK = np.stack(
            [np.log(reducible_F), np.full(len(loss_FP), np.log(exponent)), np.log(irreducible_F)], axis=1
        )
        objective_F = _objective(log_law(start_FK, log_compute_P) - log_loss_FP, huber_delta)
        better_F = objective_F < best_F
        best_FK[better_F], best_F[better_F] = start_FK[better_F], objective_F[better_F]
    return best_FK
