"""Bootstrap replicates of a fitted curve, and intervals from them.

Points are resampled singly, or by runs if the points of a run go together. Both keep the positions of the points and
add noise to the fitted values. Both draw the size of the noise anew for each replicate, as a scaled inverse chi: few
points tell the size of their noise only roughly, and intervals that take the estimate for the truth are too narrow. (In
a linear model this turns normal quantiles into Student's.)

Letters of axes: P points, B replicates, G runs, K fitted parameters.
"""

from typing import Any

import numpy as np

#: Limit on the noise of a log loss in a replicate: with few runs the size of the noise has no mean.
MOST_NOISE = 2.0
#: With fewer, the runs do not tell how runs differ.
FEWEST_DEGREES_OF_FREEDOM = 0.5


def noise_of_points(
    residual_P: np.ndarray, num_parameters: int, num_draws: int, generator: np.random.Generator
) -> np.ndarray:
    """Residuals, drawn with replacement and widened for the parameters that were fitted; shape (B, P)."""
    num_points = len(residual_P)
    freedom = num_points - num_parameters
    centred_P = residual_P - residual_P.mean()
    noise_BP = generator.choice(centred_P * np.sqrt(num_points / freedom), (num_draws, num_points))
    return _limited(noise_BP, freedom, generator)


def noise_of_runs(
    residual_P: np.ndarray,
    jacobian_PK: np.ndarray,
    run_P: np.ndarray,
    huber_delta: float,
    num_draws: int,
    generator: np.random.Generator,
) -> np.ndarray | None:
    """All residuals of a run times one normal number: what the points of a run have in common stays (wild bootstrap).

    Residuals are cut at `huber_delta` and scaled up for it, which gives least squares of the replicates the spread that
    the robust fit has. Each run's are then divided by what the fit took out of them (the CR2 adjustment of Bell and
    McCaffrey 2002), and the degrees of freedom are what these adjustments leave: G - 1 for runs with equal computes.

    Args:
        run_P: number of each point's run, 0 to G - 1.

    Returns:
        noise_BP, for fits by least squares; None where the runs do not tell how runs differ, as when one run alone
        covers the small computes and another the large ones.
    """
    pseudo_P = np.clip(residual_P, -huber_delta, huber_delta) / np.mean(np.abs(residual_P) <= huber_delta)
    basis_PK, _ = np.linalg.qr(jacobian_PK)
    adjusted_P = np.empty_like(pseudo_P)
    num_runs = int(run_P.max()) + 1
    freedom = 0.0
    for run in range(num_runs):
        of_run_P = run_P == run
        left, directions = np.linalg.eigh(np.eye(of_run_P.sum()) - basis_PK[of_run_P] @ basis_PK[of_run_P].T)
        scale = np.where(left > 1e-8, np.maximum(left, 1e-8) ** -0.5, 0.0)
        adjusted_P[of_run_P] = directions @ (scale * (directions.T @ pseudo_P[of_run_P]))
        freedom += left[0]
    if freedom < FEWEST_DEGREES_OF_FREEDOM:
        return None
    noise_BP = adjusted_P * generator.standard_normal((num_draws, num_runs))[:, run_P]
    return _limited(noise_BP, freedom, generator)


def _limited(noise_BP: np.ndarray, freedom: float, generator: np.random.Generator) -> np.ndarray:
    size_B1 = np.sqrt(freedom / generator.chisquare(freedom, (len(noise_BP), 1)))
    return np.clip(noise_BP * size_B1, -MOST_NOISE, MOST_NOISE)


def percentile_interval(draws: np.ndarray, confidence: float) -> tuple[Any, Any]:
    """Quantiles over the last axis that leave equal shares outside; draws may be infinite."""
    outside = (1.0 - confidence) / 2
    # Not interpolated: between two infinite draws that would be NaN.
    low, high = np.quantile(draws, [outside, 1.0 - outside], axis=-1, method="inverted_cdf")
    return low, high
