"""Compare the validation loss of runs by number of training tokens, as a table and a plot.

Reads the TensorBoard logs that Megatron wrote during training. Give each group of runs a name and its log directories,
one per seed; the first group is the baseline:

    miniplm compare-runs --tokens-per-sample 1024 --output comparison \\
        --run conventional runs/conventional-*/tensorboard --run refined runs/refined-*/tensorboard
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_miniplm.evaluation.curves import LossCurve

MOST_ROWS = 12


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "DIR"),
        help="name of a group of runs and their TensorBoard directories, one per seed",
    )
    parser.add_argument("--tokens-per-sample", type=int, required=True, help="the --seq-length of the training runs")
    parser.add_argument("--validation-set", metavar="NAME", help="name of the validation set, if the runs have several")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the curves to this file, as in curves.json"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also write curves.json and curves.png to this directory"
    )


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.artifacts import sole_writer, write_json, write_result
    from megatron_miniplm.errors import InputError
    from megatron_miniplm.evaluation.curves import read_curve, require_same_validation

    curves: dict[str, LossCurve] = {}
    for name, *log_dirs in arguments.run:
        if not log_dirs or name in curves:
            raise InputError(f"--run {name}: give each kind of run one name and at least one log directory")
        curves[name] = read_curve(
            [Path(path) for path in log_dirs],
            tokens_per_sample=arguments.tokens_per_sample,
            validation_set=arguments.validation_set,
        )
    log_dirs = [Path(path) for _, *paths in arguments.run for path in paths]
    if warning := require_same_validation(log_dirs):
        print(warning, file=sys.stderr)
    print("\n".join(table(curves)))
    print("\n".join(verdicts(curves)))
    values = {name: as_json(curve) for name, curve in curves.items()}
    if arguments.json:
        write_result(arguments.json, values)
    if arguments.output:
        from megatron_miniplm.evaluation.plot import plot_curves

        with sole_writer(arguments.output):
            write_json(arguments.output / "curves.json", values)
            plot_curves(curves, arguments.output / "curves.png")


def table(curves: "dict[str, LossCurve]") -> list[str]:
    """At most MOST_ROWS rows, evenly spaced over the evaluations, the last included."""
    first = next(iter(curves.values()))
    step = -(-len(first.tokens_E) // MOST_ROWS)
    rows = sorted(range(len(first.tokens_E) - 1, -1, -step))
    seeds = ", ".join(f"{name}: {len(curve.loss_RE)}" for name, curve in curves.items())
    lines = [f"validation loss (nats per token), mean over seeds ({seeds})", ""]
    lines.append(f"{'tokens':>12}" + "".join(f"{name:>16}" for name in curves))
    for row in rows:
        losses = "".join(
            f"{curve.mean_E[row]:>16.4f}" if row < len(curve.tokens_E) else f"{'':>16}" for curve in curves.values()
        )
        lines.append(f"{first.tokens_E[row]:>12,}{losses}")
    return lines


def verdicts(curves: "dict[str, LossCurve]") -> list[str]:
    """How each kind of run compares with the baseline, in tokens and in loss."""
    (baseline_name, baseline), *others = curves.items()
    lines = [""]
    for name, curve in others:
        difference = float(curve.mean_E[-1] - baseline.mean_E[-1])
        spread = "" if (error := _error_of_difference(curve, baseline)) is None else f" (standard error {error:.4f})"
        lines.append(f"{name} - {baseline_name} after {curve.tokens_E[-1]:,} tokens: {difference:+.4f}{spread}")
        lines.append(_race(name, curve, baseline_name, baseline))
        lines.append(_race(baseline_name, baseline, name, curve))
    return lines


def _race(name: str, curve: "LossCurve", other_name: str, other: "LossCurve") -> str:
    """How many tokens one kind needs for the other's final loss."""
    goal = float(other.mean_E[-1])
    tokens = curve.tokens_to_reach(goal)
    if tokens is None:
        return f"{name} does not reach the final loss of {other_name} ({goal:.4f}) in {curve.tokens_E[-1]:,} tokens"
    share = tokens / other.tokens_E[-1]
    return f"{name} reaches the final loss of {other_name} ({goal:.4f}) after {tokens:,.0f} tokens ({share:.0%})"


def _error_of_difference(curve: "LossCurve", baseline: "LossCurve") -> float | None:
    errors = (curve.standard_error_E, baseline.standard_error_E)
    if errors[0] is None or errors[1] is None:
        return None
    return float((errors[0][-1] ** 2 + errors[1][-1] ** 2) ** 0.5)


def as_json(curve: "LossCurve") -> dict[str, Any]:
    return {"tokens": curve.tokens_E.tolist(), "loss_nats_per_token": curve.loss_RE.tolist()}
