"""Scaling curves for people and for scripts: points from files, results as text, JSON and a picture."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.curves import read_curve
from megatron_miniplm.evaluation.plot import load_pyplot
from megatron_miniplm.evaluation.scaling import FittedScalingLaw, compute_equivalent_gain, gain_interval
from megatron_miniplm.runtime.text_table import aligned

#: Fields of a law, and how they are printed.
CONSTANTS = {"irreducible_loss": ".3f", "amplitude": ".2e", "exponent": ".3f"}
NUM_GRID_POINTS = 200
#: The picture extends beyond the last compute that it shows by this factor.
MARGIN = 1.3


@dataclass(frozen=True, kw_only=True)
class ScalingPoints:
    """Losses of one method by compute.

    Attributes:
        compute_P: FLOPs, float64.
        loss_P: nats a token, float64.
        runs_P: the training run of each point; None where the points do not name it.
    """

    compute_P: np.ndarray
    loss_P: np.ndarray
    runs_P: list[str] | None = None


def read_points(path: Path) -> dict[str, ScalingPoints]:
    """Read `{"method": [{"compute_flops": 1e18, "loss": 4.2, "run": "seed 1"}, ...], ...}`; "run" may be left out.

    Raises:
        InputError: the file is not such JSON, or a method names the runs of some points only.
    """
    form = 'expected {"method": [{"compute_flops": 1e18, "loss": 4.2, "run": "optional"}, ...], ...}'
    try:
        with open_regular(path) as stream:
            methods = json.loads(stream.read(), parse_int=float)
    except (ValueError, RecursionError) as error:  # of JSON and of its encoding
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(methods, dict) or not methods:
        raise InputError(f"{path} holds no methods: {form}")
    points = {}
    for name, entries in methods.items():
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: {name} holds no points: {form}")
        for at, entry in enumerate(entries):
            if not _is_point(entry):
                raise InputError(f"{path}: point {at} of {name} is {json.dumps(entry)[:80]}: {form}")
        runs = [str(entry["run"]) for entry in entries if "run" in entry]
        if 0 < len(runs) < len(entries):
            raise InputError(f'{path}: {len(entries) - len(runs)} points of {name} have no "run": name all or none')
        points[name] = ScalingPoints(
            compute_P=np.array([entry["compute_flops"] for entry in entries], np.float64),
            loss_P=np.array([entry["loss"] for entry in entries], np.float64),
            runs_P=runs or None,
        )
    return points


def _is_point(entry: Any) -> bool:
    return isinstance(entry, dict) and all(map(_is_finite, map(entry.get, ("compute_flops", "loss"))))


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def points_of_logs(
    log_dirs: Sequence[Path],
    *,
    flops_per_token: float,
    tokens_per_sample: int,
    skip_tokens: int = 0,
    validation_set: str | None = None,
) -> ScalingPoints:
    """Every evaluation of every run; a directory is a run.

    Args:
        flops_per_token: of training, forward and backward; about six times the parameters.
        skip_tokens: evaluations before so many tokens are left out.

    Raises:
        InputError: the logs cannot be read as curves, or nothing is left of them.
    """
    curve = read_curve(log_dirs, tokens_per_sample=tokens_per_sample, validation_set=validation_set)
    kept_E = (curve.tokens_E > 0) & (curve.tokens_E >= skip_tokens)
    if not kept_E.any():
        raise InputError(
            f"--skip-tokens {skip_tokens:,} leaves nothing of {log_dirs[0]}: it ends at {curve.tokens_E[-1]:,} tokens"
        )
    num_kept = int(kept_E.sum())
    return ScalingPoints(
        compute_P=np.tile(curve.tokens_E[kept_E] * flops_per_token, len(log_dirs)),
        loss_P=curve.loss_RE[:, kept_E].ravel(),
        runs_P=[str(path) for path in log_dirs for _ in range(num_kept)],
    )


def joined(parts: Sequence[ScalingPoints]) -> ScalingPoints:
    """Points of several model sizes as those of one method; all parts name their runs."""
    return ScalingPoints(
        compute_P=np.concatenate([part.compute_P for part in parts]),
        loss_P=np.concatenate([part.loss_P for part in parts]),
        runs_P=[run for part in parts for run in part.runs_P or ()],
    )


def as_json(
    points: Mapping[str, ScalingPoints],
    laws: Mapping[str, FittedScalingLaw],
    extrapolated_to: Sequence[float],
    confidence: float,
) -> dict[str, Any]:
    """All results with their intervals; null stands for infinite, which only gains and their ends can be.

    Losses and gains are at the largest compute of the points, then at the computes asked for. Gains are over the first
    method.
    """
    most_seen = max(float(part.compute_P.max()) for part in points.values())
    computes = list(dict.fromkeys([most_seen, *extrapolated_to]))
    baseline_name, *others = laws
    baseline = laws[baseline_name]

    def constant(law: FittedScalingLaw, key: str) -> dict[str, Any]:
        return _entry(getattr(law, key), *law.interval(lambda each: getattr(each, key), confidence))

    def loss(law: FittedScalingLaw, compute: float) -> dict[str, Any]:
        interval = law.interval(lambda each: each.loss(compute), confidence)
        return {"compute_flops": compute} | _entry(law.loss(compute), *interval)

    def gain(law: FittedScalingLaw, compute: float) -> dict[str, Any]:
        interval = gain_interval(law, baseline, compute, confidence)
        return {"compute_flops": compute} | _entry(compute_equivalent_gain(law, baseline, compute), *interval)

    return {
        "confidence": confidence,
        "baseline": baseline_name,
        "methods": {
            name: {
                **{key: constant(law, key) for key in CONSTANTS},
                "num_points": law.num_points,
                "num_runs": law.num_runs,
                "resampled": law.resampled,
                "scatter_fraction": law.scatter,
                "doubts": list(law.doubts),
                "losses": [loss(law, compute) for compute in computes],
            }
            for name, law in laws.items()
        },
        "compute_equivalent_gains": {name: [gain(laws[name], compute) for compute in computes] for name in others},
    }


def _entry(value: float, low: float, high: float) -> dict[str, float | None]:
    numbers = {"value": float(value), "low": float(low), "high": float(high)}
    return {key: number if math.isfinite(number) else None for key, number in numbers.items()}


def lines(found: Mapping[str, Any]) -> list[str]:
    """What `as_json` has found: constants, losses, gains over the first method, and doubts."""
    methods, confidence = found["methods"], found["confidence"]
    constants = [["", "points", "runs", "scatter", "L_inf", "A", "alpha"]]
    for name, method in methods.items():
        row = [name, str(method["num_points"]), str(method["num_runs"] or "-"), f"{method['scatter_fraction']:.2%}"]
        constants.append([*row, *(_ranged(method[key], form) for key, form in CONSTANTS.items())])
    losses = [["loss at FLOPs", "of points", *methods]]
    most_seen, gains = None, []
    for at_compute in zip(*(method["losses"] for method in methods.values()), strict=True):
        compute = at_compute[0]["compute_flops"]
        most_seen = most_seen or compute
        cells = (_ranged(entry, ".3f") for entry in at_compute)
        losses.append([f"{compute:.3g}", f"{compute / most_seen:.3g} x", *cells])
        for name in list(methods)[1:]:
            gains.append(_gain_line(found, name, len(losses) - 2))
    told = [f"L(C) = L_inf + A * C^-alpha, C in FLOPs, L in nats a token; [{confidence:.0%} bootstrap intervals]", ""]
    for table in (constants, losses):
        told += [*aligned(table, left=range(len(table[0]))), ""]
    return [*told, *gains, *_caveats(methods)]


def _ranged(entry: Mapping[str, float | None], form: str) -> str:
    numbers = (entry[key] for key in ("value", "low", "high"))
    value, low, high = (format(math.inf if number is None else number, form) for number in numbers)
    return f"{value} [{low}, {high}]"


def _gain_line(found: Mapping[str, Any], name: str, at: int) -> str:
    """The gain of a method at one of the computes."""
    baseline_name, methods = found["baseline"], found["methods"]
    gain = found["compute_equivalent_gains"][name][at]
    value, low, high = ("never" if gain[key] is None else f"{gain[key]:.3g} x" for key in ("value", "low", "high"))
    interval = "[never]" if gain["low"] is None else f"[{low} to {high}]"
    told = f"at {gain['compute_flops']:.3g} FLOPs {name} is at {methods[name]['losses'][at]['value']:.3f}"
    if gain["value"] is None:
        floor = methods[baseline_name]["irreducible_loss"]["value"]
        return f"{told}, which {baseline_name} never reaches: its L_inf is {floor:.3f} {interval}"
    return f"{told}, for which {baseline_name} needs {value} the compute {interval}"


def _caveats(methods: Mapping[str, Any]) -> list[str]:
    by_points = [name for name, method in methods.items() if method["resampled"] == "points"]
    told = []
    if by_runs := ", ".join(name for name in methods if name not in by_points):
        told.append(f"{by_runs}: whole runs were resampled, so the intervals hold what differs between seeds")
    if by_points:
        told.append(
            f"{', '.join(by_points)}: single points were resampled, as if independent; points along one run are not, "
            "and the intervals are then too narrow (name two or more runs of the same computes)"
        )
    return [*told, *(f"{name}: {doubt}" for name, method in methods.items() for doubt in method["doubts"])]


def plot_scaling(
    points: Mapping[str, ScalingPoints],
    laws: Mapping[str, FittedScalingLaw],
    extrapolated_to: Sequence[float],
    confidence: float,
    paths: Sequence[Path],
) -> None:
    """Draw all methods in one picture and write it once for each path, in the format of the path's ending.

    Raises:
        InputError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    least = min(float(part.compute_P.min()) for part in points.values())
    most_seen = max(float(part.compute_P.max()) for part in points.values())
    most = max([most_seen, *extrapolated_to])
    grid_C = np.geomspace(least / MARGIN, most * MARGIN, NUM_GRID_POINTS)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.5), constrained_layout=True)
    seen_C = grid_C <= most_seen
    for name, law in laws.items():
        (line,) = axes.plot(grid_C[seen_C], law.loss(grid_C[seen_C]), label=name)
        colour = line.get_color()
        axes.plot(grid_C[~seen_C], law.loss(grid_C[~seen_C]), color=colour, linestyle="--")
        low_C, high_C = law.interval(lambda each: each.loss(grid_C[:, None]), confidence)
        axes.fill_between(grid_C, low_C, high_C, color=colour, alpha=0.2, linewidth=0)
        part = points[name]
        many = len(part.loss_P) > 60
        axes.scatter(part.compute_P, part.loss_P, s=6 if many else 18, alpha=0.5 if many else 1.0, color=colour)
    axes.set_xscale("log")
    axes.set_xlim(grid_C[0], grid_C[-1])
    axes.set_ylim(*_loss_limits(points, laws, most * MARGIN, confidence))
    if most > most_seen:
        axes.axvspan(most_seen, grid_C[-1], color="0.93", zorder=0, linewidth=0)
        axes.annotate(
            "extrapolated", (most_seen, 1.0), xycoords=("data", "axes fraction"), xytext=(6, -14),
            textcoords="offset points", color="0.4",
        )  # fmt: skip
    axes.set_xlabel("training compute (FLOPs)")
    axes.set_ylabel("held-out loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(title=f"fit, {confidence:.0%} interval")
    with pyplot.rc_context({"svg.hashsalt": "miniplm"}):  # equal inputs give equal bytes
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else None
            with atomic_output(path) as stream:
                figure.savefig(stream, format=path.suffix[1:], dpi=150, metadata=metadata)
    pyplot.close(figure)


def _loss_limits(
    points: Mapping[str, ScalingPoints], laws: Mapping[str, FittedScalingLaw], most: float, confidence: float
) -> tuple[float, float]:
    """Room for points and curves, and for bands as far as the points' own range: wild bands must not hide the rest."""
    losses_P = np.concatenate([part.loss_P for part in points.values()])
    span = float(np.ptp(losses_P))
    ends = [float(law.loss(most)) for law in laws.values()]
    lows = [float(law.interval(lambda each: each.loss(most), confidence)[0]) for law in laws.values()]
    floor = max(min(lows), min(*losses_P, *ends) - span)
    return floor - 0.05 * span, float(losses_P.max()) + 0.08 * span
