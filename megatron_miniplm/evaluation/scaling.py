"""Where training leads: L(C) = L_inf + A * C^-alpha, fitted to losses by compute, with bootstrap intervals.

Letters of axes: P points, B bootstrap draws. Compute is in FLOPs throughout, losses in nats a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.scaling_bootstrap import noise_of_points, noise_of_runs
from megatron_miniplm.evaluation.scaling_solver import EXPONENT_LIMITS, NUM_PARAMETERS, jacobian, log_law, solve

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
        return interval_of_draws(quantity(self.draws), confidence)


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
    low, high = interval_of_draws(compute_equivalent_gain(method.draws, baseline.draws, compute), confidence)
    return float(low), float(high)


def interval_of_draws(draws: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Quantiles over the last axis that leave equal shares outside; draws may be infinite."""
    outside = (1.0 - confidence) / 2
    # Not interpolated: between two infinite draws that would be NaN.
    low, high = np.quantile(draws, [outside, 1.0 - outside], axis=-1, method="inverted_cdf")
    return low, high


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
