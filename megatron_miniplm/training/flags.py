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
        help="train on what these selections keep; prefixes of the blend without a selection stay whole",
    )
    group.add_argument(
        "--miniplm-weighting",
        choices=WEIGHTINGS,
        default="none",
        help="what the weights of the selection do: nothing, change how often a sequence is drawn in each epoch, or "
        "scale its loss (default: none)",
    )
    group.add_argument(
        "--miniplm-ratio-schedule",
        metavar="SAMPLES:RATIO,...",
        help="kept fraction of the scored sequences over consumed samples, such as 0:1.0,50000:0.5",
    )
    group.add_argument(
        "--miniplm-temperature-schedule",
        metavar="SAMPLES:TEMPERATURE,...",
        help="temperature of the sampling among the scored sequences over consumed samples; 0 is the top set",
    )
    group.add_argument(
        "--miniplm-kd-teacher",
        metavar="CKPT",
        help="distil online (vanilla KD, the paper's baseline) from this Megatron checkpoint, in the student's layout",
    )
    group.add_argument(
        "--miniplm-kd-alpha",
        type=float,
        default=0.5,
        metavar="A",
        help="weight of the distillation loss; the language-model loss has the rest (default: 0.5)",
    )
    group.add_argument(
        "--miniplm-dry-run",
        action="store_true",
        help="build the model and the datasets, say what they are, and stop",
    )
    return parser
