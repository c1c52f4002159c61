"""Run downstream tasks of lm-evaluation-harness on a Megatron checkpoint in any parallel layout, without exporting it.

A Megatron program: it takes Megatron's own flags and runs under torchrun or srun with any TP x PP x EP x DP. The model
is a Megatron checkpoint, or a Hugging Face directory, which needs no other model flag:

    torchrun --nproc-per-node 8 tools/evaluate_tasks.py --load CKPT --use-checkpoint-args \\
        --tensor-model-parallel-size 2 --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --tasks miniplm-paper --results tasks --json tasks.json

Finished tasks are kept in --results: to continue a killed job, run the same command again. A request longer
than --seq-length tokens is truncated at its start, as in lm_eval.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.commands.score_corpus import (
    UNUSED_BUT_REQUIRED,
    add_huggingface_arguments,
    longest_context_flags,
    model_flags,
    open_model,
)
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.harness.task_loading import PAPER_GROUP, TaskChoice, require_lm_eval, stay_offline
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import our_flags_only, wants_help

if TYPE_CHECKING:
    import numpy as np

    from megatron_miniplm.evaluation.harness.model import MegatronLM, TaskTokenizer
    from megatron_miniplm.evaluation.harness.orders import Orders
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel
    from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity
    from megatron_miniplm.scoring.continuations import Continuations, ContinuationScorer

#: Tokens of a row, about, unless --micro-batch-size says how many contexts are one.
ROW_TOKENS = 16384
LOAD, SCORE = "load", "score"


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm tasks")
    group.add_argument(
        "--tasks",
        nargs="+",
        default=[PAPER_GROUP],
        metavar="TASK",
        help=f"tasks, groups or tags of lm_eval, or task files (default: {PAPER_GROUP}, the nine of the paper)",
    )
    group.add_argument(
        "--results",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory for the results of finished tasks; existing results are reused",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="write lm_eval's results of all tasks to this file")
    group.add_argument(
        "--samples",
        type=Path,
        metavar="FILE",
        help="write every example with its log-likelihoods to this file, as JSONL",
    )
    add_huggingface_arguments(group)
    group.add_argument(
        "--include-path",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="directory with your own tasks; repeat the flag for several",
    )
    group.add_argument(
        "--offline",
        action="store_true",
        help="use data sets from the cache only; never access the network",
    )
    group.add_argument(
        "--num-fewshot", type=int, metavar="N", help="examples in the context (default: as each task says, mostly 0)"
    )
    group.add_argument(
        "--limit", type=int, metavar="N", help="evaluate the first N examples of each task (default: all)"
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags and evaluate."""
    from megatron_miniplm.mcore import program

    if not sys.stderr.isatty():
        for name in ("TQDM_DISABLE", "HF_DATASETS_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")  # ours are lines then
    with program.alike_on_all_ranks():
        model = None if wants_help(argv) else _check(argv)
    flags = [*model_flags(model, argv), *longest_context_flags(model, argv), *argv]
    defaults = {**UNUSED_BUT_REQUIRED, "micro_batch_size": 1}

    def fill_rows(args: argparse.Namespace) -> None:
        if "--micro-batch-size" not in given_flags(argv):
            args.micro_batch_size = max(1, ROW_TOKENS // args.seq_length)

    with program.running(flags, add_arguments, defaults, complete=fill_rows) as args:
        _evaluate(args, model)


def _check(argv: Sequence[str]) -> "HuggingFaceModel | None":
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes."""
    parser = add_arguments(our_flags_only("evaluate-tasks"))
    parser.add_argument("--load")
    arguments, _ = parser.parse_known_args(argv)
    require_lm_eval()
    for name, least in {"num_fewshot": 0, "limit": 1}.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    if arguments.offline:
        stay_offline()
    return open_model(arguments, argv)


def _evaluate(args: argparse.Namespace, huggingface: "HuggingFaceModel | None") -> None:
    """All ranks: rank 0 asks lm_eval's questions, the others answer along."""
    from megatron_miniplm.commands.scored_model import model_and_tokenizer
    from megatron_miniplm.evaluation.harness.orders import Orders
    from megatron_miniplm.mcore import models
    from megatron_miniplm.scoring.continuations import ContinuationScorer

    args.allow_tokenizer_mismatch = False  # there is no corpus that it could fit or not
    identity, tokenizer, _ = model_and_tokenizer(args, huggingface)
    orders = Orders()
    scorers: list[ContinuationScorer] = []

    def load() -> None:
        scorers.append(ContinuationScorer(args, models.load_for_scoring(args), identity.vocab_size))

    if not orders.is_leader:
        return orders.follow({LOAD: load, SCORE: lambda: _score(scorers[0], None)})
    with orders.leading():
        text = _text(args, huggingface)
        if text.prefix_token is None:
            raise InputError("the tokenizer has neither a BOS nor an end-of-text token, one of which starts a text")

        def answerer() -> "MegatronLM":
            orders.give(LOAD)
            load()
            return _as_lm(args, identity, text, scorers[0], orders)

        print("\n".join(_ask(args, identity, tokenizer, answerer)), flush=True)


def _ask(
    args: argparse.Namespace, model: "ModelIdentity", tokenizer: "TokenizerIdentity", load: "Callable[[], MegatronLM]"
) -> list[str]:
    """On rank 0: lm_eval's questions; returns the table."""
    from megatron_miniplm.evaluation.harness.results import ModelKey, ResultFiles, evaluate_tasks

    key = ModelKey(
        weights=model.weights,
        tokenizer=tokenizer.fingerprint or tokenizer.place,
        vocab_size=model.vocab_size,
        max_length=args.seq_length,
        precision=str(args.params_dtype),
    )
    choice = TaskChoice(
        names=tuple(name for word in args.tasks for name in word.split(",")),
        include_dirs=tuple(args.include_path),
        num_fewshot=args.num_fewshot,
        limit=args.limit,
    )
    files = ResultFiles(args.results, key, choice)
    return evaluate_tasks(choice, files, load, json_path=args.json, samples_path=args.samples)


def _text(args: argparse.Namespace, huggingface: "HuggingFaceModel | None") -> "TaskTokenizer":
    """The tokenizer of the flags, by default that of the Hugging Face directory.

    Raises:
        InputError: there is none.
    """
    from megatron.training import get_tokenizer

    from megatron_miniplm.evaluation.harness.model import HuggingFaceText, MegatronText

    if args.tokenizer_type == "HuggingFaceTokenizer":
        trusted = getattr(args, "trust_remote_code", False)
        return HuggingFaceText.open(args.tokenizer_model, trust_remote_code=trusted)
    if args.tokenizer_type != "NullTokenizer":
        return MegatronText(get_tokenizer())
    if huggingface is None or not huggingface.has_tokenizer:
        raise InputError("tasks are text: give --tokenizer-type and --tokenizer-model of the model's tokenizer")
    return HuggingFaceText.open(huggingface.directory)


def _as_lm(
    args: argparse.Namespace,
    model: "ModelIdentity",
    text: "TaskTokenizer",
    scorer: "ContinuationScorer",
    orders: "Orders",
) -> "MegatronLM":
    """On rank 0: what lm_eval asks, answered by all ranks."""
    from megatron_miniplm.evaluation.harness.model import MegatronLM
    from megatron_miniplm.scoring.continuations import Continuations

    def score(pairs: "Sequence[tuple[list[int], list[int]]]") -> list[tuple[float, bool]]:
        if not pairs:
            return []
        continuations = Continuations.of(pairs, context_tokens=args.seq_length)
        orders.give(SCORE)
        nll_N, is_greedy_N = _score(scorer, continuations)
        return list(zip((-nll_N).tolist(), is_greedy_N.tolist(), strict=True))

    return MegatronLM(text, score, max_length=args.seq_length, vocab_size=model.vocab_size)


def _score(scorer: "ContinuationScorer", continuations: "Continuations | None") -> "tuple[np.ndarray, np.ndarray]":
    """Rank 0's continuations, on all ranks; a collective call."""
    from megatron_miniplm.mcore import program

    return scorer.score_continuations(program.on_rank_zero(lambda: continuations))
