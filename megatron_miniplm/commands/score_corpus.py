"""Score every sequence of a Megatron corpus with a model: NLL sum and token count, in resumable blocks.

A Megatron program: it takes Megatron's own flags and runs under torchrun or srun with any TP x PP x DP.

    torchrun --nproc-per-node 8 tools/score_corpus.py --load CKPT --use-checkpoint-args \\
        --tensor-model-parallel-size 4 --seq-length 1024 --micro-batch-size 8 \\
        --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --miniplm-corpus data/pile_text_document --miniplm-scores scores/teacher
"""

import argparse
import sys
from collections.abc import Sequence

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.manifest import is_prefix
from megatron_miniplm.errors import InputError

#: Flags that Megatron's parser insists on and that mean nothing to scoring.
UNUSED_BUT_REQUIRED = {"train_iters": 1, "lr": 1e-4}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm scoring")
    group.add_argument(
        "--miniplm-corpus", nargs="+", required=True, metavar="PREFIX", help="prefixes, or directories of views"
    )
    group.add_argument("--miniplm-scores", required=True, metavar="DIR", help="where the scores go; resumed if started")
    group.add_argument(
        "--miniplm-block-sequences",
        type=int,
        default=4096,
        help="sequences of a block, the unit of work, of resuming and of files",
    )
    group.add_argument(
        "--miniplm-window-overlap",
        type=int,
        default=None,
        metavar="TOKENS",
        help="context repeated between the windows of a sequence longer than --seq-length; default: a quarter of it",
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags and score."""
    from megatron_miniplm.mcore import program
    from megatron_miniplm.mcore.cpu_flags import given_flags

    sys.argv[1:] = argv
    if "--tokenizer-model" in given_flags(argv):
        # `--use-checkpoint-args` would put the checkpoint's tokenizer in place of the one given, without a word.
        sys.argv.append("--no-use-tokenizer-model-from-checkpoint-args")
    with program.alike_on_all_ranks():
        if not {"-h", "--help"} & set(argv):
            _check_paths(argv)
        program.prepare()
        args = program.parse(add_arguments, defaults=UNUSED_BUT_REQUIRED)
    if args.miniplm_window_overlap is None:
        args.miniplm_window_overlap = args.seq_length // 4
    prefixes = expand_prefixes(args.miniplm_corpus)
    program.initialize()
    try:
        from megatron_miniplm.scoring.engine import score_corpus

        score_corpus(args, prefixes)
    finally:
        program.shut_down()


def _check_paths(argv: Sequence[str]) -> None:
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes."""
    from megatron_miniplm.mcore.models import checkpoint_directory

    parser = add_arguments(argparse.ArgumentParser(add_help=False, usage="%(prog)s <flags>   (--help lists them)"))
    parser.add_argument("--load")
    arguments, _ = parser.parse_known_args(argv)
    checkpoint_directory(arguments.load)
    for prefix in expand_prefixes(arguments.miniplm_corpus):
        if not is_prefix(prefix):
            raise InputError(f"{prefix}.idx does not exist: give the prefix of a .bin/.idx pair, without extension")
    if arguments.miniplm_block_sequences < 1:
        raise InputError(f"--miniplm-block-sequences {arguments.miniplm_block_sequences} must be at least 1")
