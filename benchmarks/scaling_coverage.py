#!/usr/bin/env python3
"""How often the 90 % intervals of `miniplm fit-scaling-curve` hold the truth, on synthetic points: docs/scaling.md.

Truth is the paper's curve for its conventional 200M student (arXiv 2410.17215); points are spaced evenly in log compute
between 1e18 FLOPs and its largest run, and the loss is extrapolated to 20 times that run.
"""

import argparse
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.evaluation.scaling import ScalingLaw, fit

TRUTH = ScalingLaw(2.19e7, 0.41, 3.30)
LEAST_FLOPS, MOST_FLOPS, EXTRAPOLATED_FLOPS = 1e18, 6.3e19, 1.26e21


@dataclass(frozen=True, kw_only=True)
class Design:
    """Points of one draw. Noise is relative and normal; with `between_runs` and `along_run`, points belong to runs.

    Attributes:
        outlier_fraction: share of points with eight times the noise.
        between_runs: standard deviation of what a run's points have in common.
        along_run: standard deviation of noise whose correlation falls by a fifth from point to point of a run.
    """

    num_points: int
    noise: float
    outlier_fraction: float = 0.0
    num_runs: int = 1
    between_runs: float = 0.0
    along_run: float = 0.0
    tell_runs: bool = True

    def draw(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str] | None]:
        shape = (self.num_runs, self.num_points)
        noise_GP = self.noise * generator.standard_normal(shape)
        noise_GP[generator.random(shape) < self.outlier_fraction] *= 8
        noise_GP += self.between_runs * generator.standard_normal((self.num_runs, 1))
        walk_G = generator.standard_normal(self.num_runs)
        for point in range(self.num_points):
            noise_GP[:, point] += self.along_run * walk_G
            walk_G = 0.8 * walk_G + 0.6 * generator.standard_normal(self.num_runs)
        compute_P = np.tile(np.geomspace(LEAST_FLOPS, MOST_FLOPS, self.num_points), self.num_runs)
        runs = [f"run {run}" for run in range(self.num_runs) for _ in range(self.num_points)]
        told = runs if self.tell_runs and self.num_runs > 1 else None
        return compute_P, TRUTH.loss(compute_P) * np.exp(noise_GP.ravel()), told


DESIGNS = {
    "5 points, 0.5 %": Design(num_points=5, noise=0.005),
    "6 points, 0.5 %": Design(num_points=6, noise=0.005),
    "8 points, 0.2 %": Design(num_points=8, noise=0.002),
    "8 points, 0.5 %": Design(num_points=8, noise=0.005),
    "8 points, 1 %": Design(num_points=8, noise=0.01),
    "20 points, 1 %": Design(num_points=20, noise=0.01),
    "12 points, 0.5 %, a tenth with 8 x": Design(num_points=12, noise=0.005, outlier_fraction=0.1),
    "2 runs of 12, told": Design(num_points=12, noise=0.001, num_runs=2, between_runs=0.002, along_run=0.002),
    "3 runs of 12, told": Design(num_points=12, noise=0.001, num_runs=3, between_runs=0.002, along_run=0.002),
    "5 runs of 12, told": Design(num_points=12, noise=0.001, num_runs=5, between_runs=0.002, along_run=0.002),
    "3 runs of 12, not told": Design(
        num_points=12, noise=0.001, num_runs=3, between_runs=0.002, along_run=0.002, tell_runs=False
    ),
    "1 run of 12": Design(num_points=12, noise=0.001, between_runs=0.002, along_run=0.002),
    "1 run of 50": Design(num_points=50, noise=0.001, between_runs=0.002, along_run=0.002),
}


def quantities(law: ScalingLaw) -> np.ndarray:
    return np.stack([law.loss(EXTRAPOLATED_FLOPS), law.irreducible_loss, law.exponent])


def coverage(design: Design, num_draws: int, num_bootstrap: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the extrapolated loss, the irreducible loss and the exponent: share of intervals that hold, median width."""
    generator = np.random.default_rng(0)
    held, widths = [], []
    for draw in range(num_draws):
        compute_P, loss_P, runs_P = design.draw(generator)
        low, high = fit(compute_P, loss_P, runs_P=runs_P, num_draws=num_bootstrap, seed=draw).interval(quantities)
        held.append((low <= quantities(TRUTH)) & (quantities(TRUTH) <= high))
        widths.append(high - low)
    return np.mean(held, axis=0), np.median(widths, axis=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--bootstrap", type=int, default=400)
    arguments = parser.parse_args()
    print("| points | loss at 20 x | L_inf | alpha | median width of the loss's interval |")
    print("|---|---|---|---|---|")
    for name, design in DESIGNS.items():
        held, widths = coverage(design, arguments.draws, arguments.bootstrap)
        print(f"| {name} | " + " | ".join(f"{share:.1%}" for share in held) + f" | {widths[0]:.3f} |", flush=True)
