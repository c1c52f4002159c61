"""Fit a scaling curve to the losses of each method, extrapolate it, and report the compute saved.

The law is L(C) = L_inf + A * C^-alpha, C in training FLOPs, fitted robustly, with bootstrap intervals. Points come from
a JSON file, or from the TensorBoard logs that Megatron wrote; the first method is the baseline:

    miniplm fit-scaling-curve --points points.json --extrapolate-to 1.26e21 1.26e22 --output curve
    miniplm fit-scaling-curve --tokens-per-sample 1024 --skip-tokens 2000000000 --output curve \\
        --run conventional 1.2e9 runs/conventional-*/tensorboard --run refined 1.2e9 runs/refined-*/tensorboard

The file: {"method": [{"compute_flops": 1e18, "loss": 4.2, "run": "seed 1"}, ...], ...}; "run" is optional.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_miniplm.evaluation.scaling import FittedScalingLaw
    from megatron_miniplm.evaluation.scaling_report import ScalingPoints


def add_arguments(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--points", type=Path, metavar="FILE", help="JSON file with the points of each method, see above"
    )
    source.add_argument(
        "--run",
        nargs="+",
        action="append",
        metavar=("NAME", "FLOPS_PER_TOKEN DIR"),
        help="name of a method, its training FLOPs per token (about 6 x parameters), and its "
        "TensorBoard directories, one per seed; repeat the flag with the same name for other "
        "model sizes",
    )
    parser.add_argument(
        "--tokens-per-sample", type=int, help="the --seq-length of the training runs; required with --run"
    )
    parser.add_argument(
        "--skip-tokens", type=int, default=0, help="skip evaluations before this many tokens, such as the warm-up"
    )
    parser.add_argument("--validation-set", metavar="NAME", help="name of the validation set, if the runs have several")
    parser.add_argument(
        "--extrapolate-to",
        type=float,
        nargs="+",
        default=[],
        metavar="FLOPS",
        help="amounts of compute (FLOPs) to predict the loss at",
    )
    parser.add_argument(
        "--confidence", type=float, default=0.9, help="level of the confidence intervals (default: %(default)s)"
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="DRAWS",
        help="number of bootstrap resamples (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also write scaling.png and scaling.svg to this directory"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results to this file")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.errors import InputError
    from megatron_miniplm.evaluation.scaling import fit
    from megatron_miniplm.evaluation.scaling_report import as_json, lines, plot_scaling

    if not 0 < arguments.confidence < 1:
        raise InputError(f"--confidence {arguments.confidence:g} must lie between 0 and 1")
    if wrong := [compute for compute in arguments.extrapolate_to if not 0 < compute < float("inf")]:
        raise InputError(f"--extrapolate-to {wrong[0]:g}: give positive FLOPs")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed}: give 0 or more")
    points = _points(arguments)
    laws: dict[str, FittedScalingLaw] = {}
    for number, (name, part) in enumerate(points.items()):
        try:
            laws[name] = fit(
                part.compute_P,
                part.loss_P,
                runs_P=part.runs_P,
                num_draws=arguments.bootstrap,
                seed=(arguments.seed, number),
            )
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
    found = as_json(points, laws, arguments.extrapolate_to, arguments.confidence)
    print("\n".join(lines(found)))
    if arguments.output:
        from megatron_miniplm.artifacts import sole_writer

        paths = [arguments.output / "scaling.png", arguments.output / "scaling.svg"]
        with sole_writer(arguments.output):
            plot_scaling(points, laws, arguments.extrapolate_to, arguments.confidence, paths)
    if arguments.json:
        from megatron_miniplm.artifacts import write_result

        settings: dict[str, Any] = {"bootstrap_draws": arguments.bootstrap, "seed": arguments.seed}
        write_result(arguments.json, settings | found)


def _points(arguments: argparse.Namespace) -> "dict[str, ScalingPoints]":
    from megatron_miniplm.errors import InputError
    from megatron_miniplm.evaluation.scaling_report import joined, points_of_logs, read_points

    if arguments.points:
        return read_points(arguments.points)
    if not arguments.tokens_per_sample or arguments.tokens_per_sample < 0:
        raise InputError("--run needs --tokens-per-sample, the --seq-length of the training")
    parts: dict[str, list[ScalingPoints]] = {}
    for name, *rest in arguments.run:
        flops, log_dirs = (_flops(rest[0]), rest[1:]) if rest else (None, [])
        if flops is None or not log_dirs:
            raise InputError(
                f"--run {' '.join([name, *rest])}: give a name, its training FLOPs a token (about 6 x parameters) and "
                "at least one log directory"
            )
        part = points_of_logs(
            [Path(path) for path in log_dirs],
            flops_per_token=flops,
            tokens_per_sample=arguments.tokens_per_sample,
            skip_tokens=arguments.skip_tokens,
            validation_set=arguments.validation_set,
        )
        parts.setdefault(name, []).append(part)
    return {name: joined(sizes) for name, sizes in parts.items()}


def _flops(text: str) -> float | None:
    try:
        flops = float(text)
    except ValueError:
        return None
    return flops if 0 < flops < float("inf") else None
