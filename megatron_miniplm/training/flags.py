"""The flags that refined training adds to Megatron's own, in every entry point."""

import argparse

WEIGHTINGS = ("none", "resample", "loss")
#: Under `launch`, the script that is started knows nothing of a dry run, and would train.
DRY_RUN_ELSEWHERE = (
    "--miniplm-dry-run: a script that is started by megatron_miniplm.launch would train all the same; give these flags "
    "to python -m megatron_miniplm.pretrain_gpt, which stops before that"
)


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's; without its flags a run is plain Megatron."""
    group = parser.add_argument_group(title="miniplm training")
    group.add_argument(
        "--miniplm-selection",
        nargs="+",
        metavar="DIR",
        help="train on what these selections keep; prefixes without a selection are used whole",
    )
    group.add_argument(
        "--miniplm-weighting",
        choices=WEIGHTINGS,
        default="none",
        help="what the weights of the selection do: nothing, change how often a sequence is drawn per "
        "epoch, or scale its loss (default: none)",
    )
    group.add_argument(
        "--miniplm-ratio-schedule",
        metavar="SAMPLES:RATIO,...",
        help="fraction of the scored sequences to keep, by consumed samples, such as 0:1.0,50000:0.5",
    )
    group.add_argument(
        "--miniplm-temperature-schedule",
        metavar="SAMPLES:TEMPERATURE,...",
        help="temperature of the sampling among the scored sequences, by consumed samples; 0 is the top set",
    )
    group.add_argument(
        "--miniplm-kd-teacher",
        metavar="CKPT",
        help="distill online (vanilla KD, the paper's baseline) from this Megatron checkpoint, in the "
        "student's parallel layout",
    )
    group.add_argument(
        "--miniplm-kd-alpha",
        type=float,
        default=0.5,
        metavar="A",
        help="weight of the distillation loss; the language-model loss has weight 1 - A (default: 0.5)",
    )
    group.add_argument(
        "--miniplm-dry-run",
        action="store_true",
        help="build the model and the datasets, print a summary, and stop",
    )
    return parser
