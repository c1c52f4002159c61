"""Continue the prompts of a corpus with samples of the teacher: training data for sequence-level distillation (SeqKD).

A Megatron program: it takes Megatron's own flags beside those below, and runs under torchrun or srun with any
TP x PP x DP. The model is a Megatron checkpoint, or a Hugging Face directory, which needs no other model flag:

    torchrun --nproc-per-node 8 tools/generate_corpus.py --load-hf Qwen1.5-1.8B \\
        --tensor-model-parallel-size 2 --micro-batch-size 64 \\
        --corpus data/pile_text_document --prompt-tokens 256 --max-new-tokens 768 \\
        --output-prefix data/pile_by_teacher

    torchrun --nproc-per-node 8 tools/generate_corpus.py --load CKPT --use-checkpoint-args \\
        --micro-batch-size 64 --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --corpus data/pile_text_document --prompt-tokens 256 --max-new-tokens 768 \\
        --output-prefix data/pile_by_teacher

Each output sequence is a prompt with its continuation, which ends after --max-new-tokens or with the end-of-document
token. The tokens depend on the corpus, the model, the settings and --seed, not on the number of replicas. To continue
a killed job, run the same command again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.baselines.generation_plan import GenerationSettings
from megatron_miniplm.commands.score_corpus import (
    UNUSED_BUT_REQUIRED,
    add_huggingface_arguments,
    check_prefixes,
    longest_context_flags,
    model_flags,
    open_model,
)
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.command_line import MissingFlagError, our_flags_only, wants_help

if TYPE_CHECKING:
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

DEFAULTS = {**UNUSED_BUT_REQUIRED, "micro_batch_size": 16}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm generation")
    group.add_argument(
        "--corpus",
        nargs="+",
        required=True,
        metavar="PREFIX",
        help="prefixes of the corpus, or directories of views",
    )
    group.add_argument("--output-prefix", type=Path, required=True, metavar="PREFIX", help="prefix of the new corpus")
    add_huggingface_arguments(group)
    _add_continuation(group)
    group.add_argument(
        "--num-sequences", type=int, metavar="N", help="continue only the first N sequences (default: all)"
    )
    group.add_argument(
        "--random-subset",
        action="store_true",
        help="with --num-sequences: pick N sequences at random with --seed instead of the first N",
    )
    group.add_argument(
        "--block-sequences",
        type=int,
        default=256,
        metavar="N",
        help="sequences per block, the unit of work and of resuming (default: 256)",
    )
    group.add_argument(
        "--allow-tokenizer-mismatch",
        action="store_true",
        help="accept a corpus whose tokenizer has another fingerprint; its ids must mean the same",
    )
    return parser


def _add_continuation(group: "argparse._ArgumentGroup") -> None:
    """How a prompt is cut and continued."""
    group.add_argument(
        "--prompt-tokens",
        type=int,
        required=True,
        metavar="N",
        help="tokens from the start of each sequence to use as its prompt; a shorter sequence is used whole",
    )
    group.add_argument(
        "--max-new-tokens", type=int, required=True, metavar="N", help="maximum length of a continuation"
    )
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="sampling temperature (default: 1)")
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K most likely tokens; 1 is greedy (default: all)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P (default: all)",
    )
    group.add_argument(
        "--eod-token-id",
        type=int,
        metavar="ID",
        help="token that ends a continuation; -1: none (default: the tokenizer's; NullTokenizer has none)",
    )


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags and generate."""
    from megatron_miniplm.mcore import program

    with program.alike_on_all_ranks():
        model = None if wants_help(argv) else _check(argv)
    flags = [*model_flags(model, argv), *longest_context_flags(model, argv), *argv]
    with program.running(flags, add_arguments, DEFAULTS) as args:
        from megatron_miniplm.baselines.generated_corpus import generate_corpus
        from megatron_miniplm.commands.scored_model import model_and_tokenizer

        identities = model_and_tokenizer(args, model)[:2]
        settings = _settings(args, program.on_rank_zero(lambda: _end_of_document(args, model)))
        generate_corpus(args, expand_prefixes(args.corpus), args.output_prefix, *identities, settings)


def _check(argv: Sequence[str]) -> "HuggingFaceModel | None":
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes."""
    parser = add_arguments(our_flags_only("generate-corpus"))
    parser.add_argument("--load")
    arguments, _ = parser.parse_known_args(argv)
    check_prefixes(arguments)
    for name in ("prompt_tokens", "max_new_tokens", "num_sequences", "block_sequences"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least 1")
    if not arguments.temperature > 0:
        raise InputError(f"--temperature {arguments.temperature} must be above 0: --top-k 1 takes the likeliest token")
    if arguments.top_k < 0:
        raise InputError(f"--top-k {arguments.top_k} must not be negative")
    if not 0 <= arguments.top_p <= 1:
        raise InputError(f"--top-p {arguments.top_p} must lie in [0, 1]")
    if arguments.top_k and arguments.top_p:
        raise InputError("--top-k and --top-p: Megatron's sampler takes one of them")
    if arguments.random_subset and arguments.num_sequences is None:
        raise MissingFlagError("--num-sequences", "--random-subset needs it")
    return open_model(arguments, argv)


def _end_of_document(args: argparse.Namespace, model: "HuggingFaceModel | None") -> int | None:
    """The token that ends a continuation; None if there is none. For rank 0."""
    from megatron.training import get_tokenizer

    from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
    from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder

    if args.eod_token_id is not None:
        return args.eod_token_id if args.eod_token_id >= 0 else None
    if args.tokenizer_type != "NullTokenizer":
        return get_tokenizer().eod
    if model is None or not model.has_tokenizer:
        return None
    settings = TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=model.directory)
    return make_encoder(settings, num_threads=1).eod_id


def _settings(args: argparse.Namespace, eod_id: int | None) -> GenerationSettings:
    return GenerationSettings(
        prompt_tokens=args.prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        eod_id=eod_id,
        num_sequences=args.num_sequences,
        random_subset=args.random_subset,
        block_sequences=args.block_sequences,
        batch_sequences=args.micro_batch_size,
    )
