"""Robust fits of L(C) = L_inf + A * C^-alpha to many sets of losses at once, as a bootstrap needs them.

The objective is that of Hoffmann et al. (2022, arXiv 2203.15556, approach 3; Besiroglu et al. 2024, arXiv 2404.10102):
the Huber loss of log losses, with the law's two terms added by log-sum-exp, here for one variable. All F fits advance
together by Levenberg-Marquardt with the analytic Jacobian. The tests hold the minima against scipy's `least_squares`,
which does one fit at a time.

Letters of axes: F fits, P points, K the three parameters, D fits that still move. Parameters are
(log A at the centre of the points, log alpha, log L_inf); computes are logarithms relative to that centre.
"""

import numpy as np

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
