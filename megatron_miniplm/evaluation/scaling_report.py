"""What fitted scaling curves say, as lines for a terminal and as JSON."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from megatron_miniplm.evaluation.scaling import FittedScalingLaw, compute_equivalent_gain, gain_interval
from megatron_miniplm.evaluation.scaling_points import ScalingPoints
from megatron_miniplm.text_table import aligned

#: Fields of a law, and how they are printed.
CONSTANTS = {"irreducible_loss": ".3f", "amplitude": ".2e", "exponent": ".3f"}


def lines(
    points: Mapping[str, ScalingPoints],
    laws: Mapping[str, FittedScalingLaw],
    extrapolated_to: Sequence[float],
    confidence: float,
) -> list[str]:
    """Constants, losses at the largest compute of the points and beyond, gains over the first method, and doubts."""
    constants = [["", "points", "runs", "scatter", "L_inf", "A", "alpha"]]
    for name, law in laws.items():
        row = [name, str(law.num_points), str(law.num_runs or "-"), f"{law.scatter:.2%}"]
        for key, form in CONSTANTS.items():
            row.append(_ranged(getattr(law, key), *_constant_interval(law, key, confidence), form))
        constants.append(row)
    computes = _computes(points, extrapolated_to)
    losses = [["loss at FLOPs", "of points", *laws]]
    for compute in computes:
        row = [f"{compute:.3g}", f"{compute / computes[0]:.3g} x"]
        for law in laws.values():
            row.append(_ranged(law.loss(compute), *_loss_interval(law, compute, confidence), ".3f"))
        losses.append(row)
    told = [f"L(C) = L_inf + A * C^-alpha, C in FLOPs, L in nats a token; [{confidence:.0%} bootstrap intervals]", ""]
    for table in (constants, losses):
        told += [*aligned(table, left=range(len(table[0]))), ""]
    for compute in computes:
        told += _gains(laws, compute, confidence)
    return told + _caveats(laws)


def as_json(
    points: Mapping[str, ScalingPoints],
    laws: Mapping[str, FittedScalingLaw],
    extrapolated_to: Sequence[float],
    confidence: float,
) -> dict[str, Any]:
    """Value and interval of everything in `lines`; null stands for infinite, which only gains and their ends can be."""
    computes = _computes(points, extrapolated_to)
    baseline_name, *others = laws
    return {
        "confidence": confidence,
        "baseline": baseline_name,
        "methods": {
            name: {
                **{key: _entry(getattr(law, key), *_constant_interval(law, key, confidence)) for key in CONSTANTS},
                "num_points": law.num_points,
                "num_runs": law.num_runs,
                "resampled": law.resampled,
                "scatter_fraction": law.scatter,
                "doubts": list(law.doubts),
                "losses": [
                    {"compute_flops": compute} | _entry(law.loss(compute), *_loss_interval(law, compute, confidence))
                    for compute in computes
                ],
            }
            for name, law in laws.items()
        },
        "compute_equivalent_gains": {
            name: [{"compute_flops": compute} | _gain(laws, name, compute, confidence) for compute in computes]
            for name in others
        },
    }


def _computes(points: Mapping[str, ScalingPoints], extrapolated_to: Sequence[float]) -> list[float]:
    """The largest compute of the points, then those asked for, each once."""
    most_seen = max(float(part.compute_P.max()) for part in points.values())
    return [most_seen, *(compute for compute in dict.fromkeys(extrapolated_to) if compute != most_seen)]


def _constant_interval(law: FittedScalingLaw, key: str, confidence: float) -> tuple[float, float]:
    return law.interval(lambda each: getattr(each, key), confidence)


def _loss_interval(law: FittedScalingLaw, compute: float, confidence: float) -> tuple[float, float]:
    return law.interval(lambda each: each.loss(compute), confidence)


def _entry(value: float, low: float, high: float) -> dict[str, float | None]:
    finite = {"value": float(value), "low": float(low), "high": float(high)}
    return {key: number if math.isfinite(number) else None for key, number in finite.items()}


def _gain(laws: Mapping[str, FittedScalingLaw], name: str, compute: float, confidence: float) -> dict[str, Any]:
    baseline = next(iter(laws.values()))
    gain = float(compute_equivalent_gain(laws[name], baseline, compute))
    return _entry(gain, *gain_interval(laws[name], baseline, compute, confidence))


def _gains(laws: Mapping[str, FittedScalingLaw], compute: float, confidence: float) -> list[str]:
    baseline_name, *others = laws
    baseline = laws[baseline_name]
    told = []
    for name in others:
        gain = float(compute_equivalent_gain(laws[name], baseline, compute))
        low, high = gain_interval(laws[name], baseline, compute, confidence)
        interval = "[never]" if math.isinf(low) else f"[{_times(low)} to {_times(high)}]"
        loss = f"{float(laws[name].loss(compute)):.3f}"
        if math.isinf(gain):
            told.append(
                f"at {compute:.3g} FLOPs {name} is at {loss}, which {baseline_name} never reaches: "
                f"its L_inf is {baseline.irreducible_loss:.3f} {interval}"
            )
        else:
            told.append(
                f"at {compute:.3g} FLOPs {name} is at {loss}, for which "
                f"{baseline_name} needs {_times(gain)} the compute {interval}"
            )
    return told


def _times(gain: float) -> str:
    return "never" if math.isinf(gain) else f"{gain:.3g} x"


def _ranged(value: Any, low: Any, high: Any, form: str) -> str:
    return f"{float(value):{form}} [{float(low):{form}}, {float(high):{form}}]"


def _caveats(laws: Mapping[str, FittedScalingLaw]) -> list[str]:
    by_points = [name for name, law in laws.items() if law.resampled == "points"]
    told = []
    if len(by_points) < len(laws):
        others = ", ".join(name for name in laws if name not in by_points)
        told.append(f"{others}: whole runs were resampled, so the intervals hold what differs between seeds")
    if by_points:
        told.append(
            f"{', '.join(by_points)}: single points were resampled, as if independent; points along one run are not, "
            "and the intervals are then too narrow (name two or more runs of the same computes)"
        )
    return [*told, *(f"{name}: {doubt}" for name, law in laws.items() for doubt in law.doubts)]
