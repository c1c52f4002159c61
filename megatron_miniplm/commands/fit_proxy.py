"""Fine-tune a small model to predict the difference from the text, and predict it for every sequence.

Use this if one pass of the teacher over the corpus is too expensive: score a random part of it with teacher and
reference (`score-corpus --sample-fraction`), fit a proxy to the differences of that part, and select by its predictions
for all sequences.

A Megatron program: it takes Megatron's own flags and runs under torchrun or srun with any TP x PP x DP. The fit starts
from a Megatron checkpoint or a Hugging Face directory, usually the reference model:

    torchrun --nproc-per-node 8 tools/fit_proxy.py --load REFERENCE --use-checkpoint-args \\
        --seq-length 1024 --micro-batch-size 16 --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --corpus data/pile_text_document --teacher-scores scores/teacher --reference-scores scores/reference \\
        --proxy-steps 2000 --lr 1e-4 --save checkpoints/proxy --difference-scores scores/predicted

Part of the sample is held out from the fit. How well predicted and true differences agree on it is printed and written
to scores/predicted/agreement.json. To continue a killed job, run the same command again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.baselines.proxy_targets import check_pair
from megatron_miniplm.commands.score_corpus import (
    add_shared_arguments,
    check_prefixes,
    model_flags,
    open_model,
    require_seq_length,
    set_default_overlap,
)
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import MissingFlagError, our_flags_only, wants_help

if TYPE_CHECKING:
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

#: Flags of Megatron that ours stand for.
OURS_INSTEAD = {
    "--train-iters": "--proxy-steps",
    "--train-samples": "--proxy-steps",
    "--global-batch-size": "--proxy-batch-sequences",
    "--rampup-batch-size": "--proxy-batch-sequences",
}
#: Of flags that Megatron leaves open.
DEFAULTS = {"lr": 1e-4, "save_interval": 500}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm proxy")
    add_shared_arguments(group)
    group.add_argument(
        "--teacher-scores", required=True, metavar="DIR", help="teacher scores of a random part of the corpus"
    )
    group.add_argument(
        "--reference-scores", required=True, metavar="DIR", help="reference scores of the same part, or of all of it"
    )
    group.add_argument(
        "--difference-scores",
        required=True,
        metavar="DIR",
        help="directory to write the predictions to; existing ones are continued",
    )
    group.add_argument("--proxy-steps", type=int, required=True, metavar="N", help="optimizer steps of the fit")
    group.add_argument(
        "--proxy-batch-sequences", type=int, default=64, metavar="N", help="sequences per step (default: 64)"
    )
    group.add_argument(
        "--holdout-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="fraction of the scored sample held out to measure the fit (default: 0.1)",
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags, fit and predict."""
    from megatron_miniplm.mcore import program

    with program.alike_on_all_ranks():
        model, defaults = None, dict(DEFAULTS)
        if not wants_help(argv):
            model, num_steps = _check(argv)
            defaults["train_iters"] = num_steps
    flags = [*model_flags(model, argv), *argv]
    with program.running(flags, add_arguments, defaults, complete=set_default_overlap) as args:
        from megatron_miniplm.baselines.proxy import fit_and_predict
        from megatron_miniplm.commands.scored_model import scoring_setup

        # What counts is taken from the teacher's scores, and every sequence is predicted.
        args.mask_eod = args.score_first_token = False
        args.sample_fraction, args.sample_seed = 1.0, 0
        # Megatron's own would be a multiple of the number of replicas. Its scheduler counts in it.
        args.global_batch_size = args.proxy_batch_sequences
        fit_and_predict(args, expand_prefixes(args.corpus), *scoring_setup(args, model))


def _check(argv: Sequence[str]) -> tuple["HuggingFaceModel | None", int]:
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes.

    Returns:
        The Hugging Face model, if it is one, and the number of steps.
    """
    parser = add_arguments(our_flags_only("fit-proxy"))
    parser.add_argument("--load")
    parser.add_argument("--save")
    arguments, _ = parser.parse_known_args(argv)
    if found := sorted(given_flags(argv) & OURS_INSTEAD.keys()):
        raise InputError(f"{found[0]} has no meaning here: give {OURS_INSTEAD[found[0]]}")
    for flag, least in (("--proxy-steps", 1), ("--proxy-batch-sequences", 1), ("--block-sequences", 1)):
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value is not None and value < least:
            raise InputError(f"{flag} {value} must be at least {least}")
    if not 0 < arguments.holdout_fraction < 1:
        raise InputError(f"--holdout-fraction {arguments.holdout_fraction} must lie in (0, 1)")
    if arguments.save is None:
        raise MissingFlagError("--save", "give a directory for the checkpoints of the proxy")
    if arguments.load is not None and Path(arguments.load).resolve() == Path(arguments.save).resolve():
        raise InputError(f"--load and --save are both {arguments.save}: give the proxy a directory of its own")
    check_prefixes(arguments)
    check_pair(*(ScoreStore.open(Path(scores)) for scores in (arguments.teacher_scores, arguments.reference_scores)))
    model = open_model(arguments, argv)
    require_seq_length(model, argv)
    return model, arguments.proxy_steps
