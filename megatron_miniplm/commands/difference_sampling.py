"""Keep the sequences that the teacher knows much better than the reference (difference sampling).

Writes to --output: `selection.json`, one view and one array of indices a prefix, and `data_args.txt` for Megatron's
--data-args-path. No token is copied. Differences are those of two scores, or what fit-proxy has predicted.
"""

import argparse
from pathlib import Path

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.difference import REDUCTIONS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--teacher-scores", type=Path, metavar="DIR")
    parser.add_argument("--reference-scores", type=Path, metavar="DIR")
    parser.add_argument(
        "--difference-scores",
        type=Path,
        metavar="DIR",
        help="predictions of fit-proxy; beside them --teacher-scores and --reference-scores may be sampled, and what "
        "these know is not predicted",
    )
    parser.add_argument("--ratio", type=float, required=True, help="share to keep, in (0, 1]; the paper keeps 0.5")
    parser.add_argument("--ratio-of", choices=("sequences", "tokens"), default="sequences")
    parser.add_argument(
        "--score-reduction",
        choices=REDUCTIONS,
        default="mean",
        help="rank by the difference per token (the paper's code, default) or by its sum (the paper's formula)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.selection.sampling import difference_sample

    num_models = sum(given is not None for given in (arguments.teacher_scores, arguments.reference_scores))
    if num_models == 1 or (num_models == 0 and arguments.difference_scores is None):
        raise InputError("give --teacher-scores and --reference-scores, or --difference-scores, or all three")
    summary = difference_sample(
        arguments.teacher_scores,
        arguments.reference_scores,
        arguments.output,
        predicted_dir=arguments.difference_scores,
        ratio=arguments.ratio,
        ratio_of=arguments.ratio_of,
        reduction=arguments.score_reduction,
    )
    print(
        f"{arguments.output}: kept {summary['num_kept']:,} of {summary['num_sequences']:,} sequences, "
        f"{summary['num_kept_scored_tokens']:,} of {summary['num_scored_tokens']:,} scored tokens"
    )
    unit = "nats a token" if arguments.score_reduction == "mean" else "nats"
    threshold = "none" if summary["threshold"] is None else f"{summary['threshold']:.4f}"
    print(
        f"difference ({unit}): mean {summary['mean_difference']:.4f}, of the kept "
        f"{summary['mean_kept_difference']:.4f}, threshold {threshold}; negative {summary['negative_fraction']:.1%}"
    )
    print(f"train on it with: --data-args-path {arguments.output}/data_args.txt")
