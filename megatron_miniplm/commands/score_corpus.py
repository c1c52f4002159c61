"""Score every sequence of a Megatron corpus with a model: NLL sum and token count, in resumable blocks.

A Megatron program: it takes Megatron's own flags and runs under torchrun or srun with any TP x PP x EP x DP. The model
is a Megatron checkpoint, or a Hugging Face directory, which needs no other model flag:

    torchrun --nproc-per-node 8 tools/score_corpus.py --load-hf Qwen1.5-1.8B \\
        --tensor-model-parallel-size 2 --seq-length 1024 --micro-batch-size 16 \\
        --corpus data/pile_text_document --scores scores/teacher

    torchrun --nproc-per-node 8 tools/score_corpus.py --load CKPT --use-checkpoint-args \\
        --seq-length 1024 --micro-batch-size 16 --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --corpus data/pile_text_document --scores scores/reference

Jobs with the same --scores share the work. To continue a killed job, run the same command again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.manifest import require_prefix
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import MissingFlagError, our_flags_only, wants_help

if TYPE_CHECKING:
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

#: Flags that Megatron's parser insists on and that mean nothing to scoring.
UNUSED_BUT_REQUIRED = {"train_iters": 1, "lr": 1e-4}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm scoring")
    add_shared_arguments(group)
    group.add_argument(
        "--scores",
        required=True,
        metavar="DIR",
        help="directory to write the scores to; existing scores are continued",
    )
    add_counting_arguments(group)
    group.add_argument(
        "--sample-fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="score a random fraction of all sequences (default: 1)",
    )
    group.add_argument(
        "--sample-seed", type=int, default=0, metavar="SEED", help="seed of --sample-fraction (default: 0)"
    )
    return parser


def add_counting_arguments(group: "argparse._ArgumentGroup") -> None:
    """Which predictions count; `evaluate-lm` has these too."""
    group.add_argument(
        "--mask-eod", action="store_true", help="do not count predictions whose input is the end-of-document token"
    )
    group.add_argument(
        "--score-first-token",
        action="store_true",
        help="put BOS before every sequence, so that its first token counts",
    )
    group.add_argument(
        "--bos-token-id", type=int, metavar="ID", help="BOS token of --score-first-token (default: the tokenizer's)"
    )


def add_huggingface_arguments(group: "argparse._ArgumentGroup") -> None:
    """The model, where it is not a Megatron checkpoint, and the precision that it is computed in."""
    group.add_argument(
        "--load-hf",
        type=Path,
        metavar="MODEL",
        help="Hugging Face model, instead of --load: a directory, or a downloaded ORG/NAME",
    )
    group.add_argument(
        "--float32",
        action="store_true",
        help="compute in float32, whatever precision --load-hf is stored in",
    )


def add_shared_arguments(group: "argparse._ArgumentGroup") -> None:
    """What `score-corpus`, `fit-proxy` and `evaluate-lm` say of the model, the corpus and how they meet."""
    group.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        metavar="PREFIX",
        help="prefixes of the corpus, or directories of views",
    )
    add_huggingface_arguments(group)
    group.add_argument(
        "--block-sequences",
        type=int,
        metavar="N",
        help="sequences per block, the unit of work, of resuming and of files (default: by the number of tokens, "
        "64 to 4096 full windows)",
    )
    group.add_argument(
        "--window-overlap",
        type=int,
        default=None,
        metavar="TOKENS",
        help="tokens of context repeated between the windows of a sequence longer than --seq-length "
        "(default: a quarter of it)",
    )
    group.add_argument(
        "--allow-tokenizer-mismatch",
        action="store_true",
        help="accept a corpus whose tokenizer has another fingerprint; its ids must mean the same",
    )


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags and score."""
    from megatron_miniplm.mcore import program

    with program.alike_on_all_ranks():
        model = None if wants_help(argv) else _check_paths(argv)
    flags = [*model_flags(model, argv), *argv]
    with program.running(flags, add_arguments, UNUSED_BUT_REQUIRED, complete=set_default_overlap) as args:
        from megatron_miniplm.commands.scored_model import scoring_setup
        from megatron_miniplm.scoring.engine import score_corpus

        score_corpus(args, expand_prefixes(args.corpus), *scoring_setup(args, model))


def set_default_overlap(args: argparse.Namespace) -> None:
    """A quarter of the context, where `--window-overlap` is not given."""
    if args.window_overlap is None:
        args.window_overlap = args.seq_length // 4


def model_flags(model: "HuggingFaceModel | None", argv: Sequence[str]) -> list[str]:
    """Megatron flags that go before the user's."""
    if model is None:
        # `--use-checkpoint-args` would put the checkpoint's tokenizer in place of the one given, without a word.
        given = "--tokenizer-model" in given_flags(argv)
        return ["--no-use-tokenizer-model-from-checkpoint-args"] if given else []
    flags = model.megatron_flags()
    if "--float32" not in given_flags(argv):
        flags += model.precision_flags(argv)
    if "--tokenizer-type" not in given_flags(argv):
        flags += ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(model.vocab_size)]
    return flags


def require_seq_length(model: "HuggingFaceModel | None", argv: Sequence[str]) -> None:
    """Raise `InputError` where neither the flags nor a Megatron checkpoint say how long the context is."""
    given = given_flags(argv)
    if "--seq-length" in given or (model is None and "--use-checkpoint-args" in given):
        return
    remedy = "or add --use-checkpoint-args" if model is None else f"up to {model.architecture.max_positions} here"
    raise MissingFlagError("--seq-length", f"give the longest context in tokens, {remedy}")


def longest_context_flags(model: "HuggingFaceModel | None", argv: Sequence[str]) -> list[str]:
    """`--seq-length`, where it is not given and no rows are cut by it: as far as a Hugging Face model goes.

    A Megatron checkpoint brings its own.
    """
    if model is None or "--seq-length" in given_flags(argv):
        return []
    return ["--seq-length", str(model.architecture.max_positions)]


def _check_paths(argv: Sequence[str]) -> "HuggingFaceModel | None":
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes."""
    parser = add_arguments(our_flags_only("score-corpus"))
    parser.add_argument("--load")
    arguments, _ = parser.parse_known_args(argv)
    check_prefixes(arguments)
    if arguments.block_sequences is not None and arguments.block_sequences < 1:
        raise InputError(f"--block-sequences {arguments.block_sequences} must be at least 1")
    if not 0 < arguments.sample_fraction <= 1:
        raise InputError(f"--sample-fraction {arguments.sample_fraction} must lie in (0, 1]")
    model = open_model(arguments, argv)
    require_seq_length(model, argv)
    return model


def check_prefixes(arguments: argparse.Namespace) -> None:
    """Raise `InputError` where `--corpus` contains an invalid dataset prefix."""
    for prefix in expand_prefixes(arguments.corpus):
        require_prefix(prefix)


def open_model(arguments: argparse.Namespace, argv: Sequence[str]) -> "HuggingFaceModel | None":
    """Look at the model that `--load` or `--load-hf` names; None for a Megatron checkpoint.

    Raises:
        InputError: there is none, or it cannot be what the other flags say.
    """
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

    if arguments.load is not None and arguments.load_hf is not None:
        raise InputError("--load and --load-hf name two models: give one")
    if arguments.load_hf is None:
        from megatron_miniplm.mcore.checkpoints import checkpoint_directory

        checkpoint_directory(arguments.load, _checkpoint_step(argv))
        return None
    model = HuggingFaceModel.open(arguments.load_hf)
    model.refuse_contradictions(argv)
    model.check_tensors()
    return model


def _checkpoint_step(argv: Sequence[str]) -> int | None:
    """Megatron's `--ckpt-step`, before its parser loads that iteration's arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt-step", type=int)
    return parser.parse_known_args(argv)[0].ckpt_step
