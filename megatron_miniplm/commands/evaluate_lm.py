"""Compute the held-out loss of checkpoints: nats/token, perplexity and bits per byte, by corpus and by domain.

A Megatron program: it takes Megatron's own flags and runs under torchrun or srun with any TP x PP x EP x DP, on one or
many checkpoints of a run, or on a Hugging Face directory:

    torchrun --nproc-per-node 8 tools/evaluate_lm.py --load CKPT --use-checkpoint-args --checkpoint-iterations all \\
        --seq-length 1024 --micro-batch-size 16 --tokenizer-type HuggingFaceTokenizer --tokenizer-model TOKENIZER \\
        --corpus data/heldout_text_document code=data/github_text_document \\
        --scores evaluation/student --json evaluation/student.json

    torchrun --nproc-per-node 8 tools/evaluate_lm.py --load-hf Qwen1.5-1.8B --seq-length 1024 --micro-batch-size 16 \\
        --corpus data/heldout_text_document --scores evaluation/teacher

Each argument of --corpus is one corpus, named by the last part of its path or by NAME=PREFIX. The scores of
each checkpoint and corpus are kept in DIR/CHECKPOINT/CORPUS and are not computed again. To continue a killed job, run
the same command again.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.artifacts import write_result
from megatron_miniplm.commands.score_corpus import (
    UNUSED_BUT_REQUIRED,
    add_counting_arguments,
    add_shared_arguments,
    model_flags,
    open_model,
    require_seq_length,
    set_default_overlap,
)
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.held_out import WHOLE_SEQUENCES, HeldOutCorpus, read_corpora
from megatron_miniplm.evaluation.held_out_table import ALL, LATEST, Measured, as_json, choose_iterations, table
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import our_flags_only, wants_help

if TYPE_CHECKING:
    import numpy as np

    from megatron_miniplm.evaluation.held_out_run import HeldOutRun
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's."""
    group = parser.add_argument_group(title="miniplm held-out evaluation")
    add_shared_arguments(group)
    group.add_argument(
        "--scores",
        required=True,
        metavar="DIR",
        help="directory for scores, as DIR/CHECKPOINT/CORPUS; existing scores are reused",
    )
    group.add_argument(
        "--checkpoint-iterations",
        nargs="+",
        default=[LATEST],
        metavar="N",
        help=f"iterations of --load, {LATEST} (default) or {ALL}",
    )
    group.add_argument(
        "--every-nth",
        type=int,
        default=1,
        metavar="N",
        help="evaluate every N-th of these iterations, counted back from the last",
    )
    group.add_argument("--json", type=Path, metavar="FILE", help="also write all results to this file")
    add_counting_arguments(group)
    return parser


def run(argv: Sequence[str]) -> None:
    """Parse Megatron's flags and evaluate."""
    from megatron_miniplm.mcore import program

    with program.alike_on_all_ranks():
        model: HuggingFaceModel | None = None
        corpora: list[HeldOutCorpus] = []
        if not wants_help(argv):
            model, corpora = _check(argv)
    flags = [*model_flags(model, argv), *argv]
    with program.running(flags, add_arguments, UNUSED_BUT_REQUIRED, complete=set_default_overlap) as args:
        from megatron_miniplm.commands.scored_model import scoring_setup
        from megatron_miniplm.evaluation.held_out_run import HeldOutRun

        args.sample_fraction, args.sample_seed = 1.0, 0
        iterations = program.on_rank_zero(lambda: _prepare(args))
        evaluation = HeldOutRun(args, corpora, lambda: scoring_setup(args, model), lambda: _token_bytes(args, model))
        rows = evaluation.measure(iterations)
        program.on_rank_zero(lambda: _report(args, corpora, evaluation, rows))


def _check(argv: Sequence[str]) -> "tuple[HuggingFaceModel | None, list[HeldOutCorpus]]":
    """Refuse what cannot work at once, not after the seconds that importing Megatron takes."""
    parser = add_arguments(our_flags_only("evaluate-lm"))
    parser.add_argument("--load")
    arguments, _ = parser.parse_known_args(argv)
    if "--ckpt-step" in given_flags(argv):
        raise InputError("--ckpt-step has no meaning here: give --checkpoint-iterations")
    for flag in ("--block-sequences", "--every-nth"):
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value is not None and value < 1:
            raise InputError(f"{flag} {value} must be at least 1")
    if Path(arguments.scores).is_file():
        raise InputError(f"--scores {arguments.scores} is a file: give a directory")
    if arguments.json is not None and arguments.json.is_dir():
        raise InputError(f"--json {arguments.json} is a directory: give a file")
    corpora = read_corpora(arguments.corpus)
    model = open_model(arguments, argv)
    if model is None:
        _iterations(arguments)
    elif arguments.checkpoint_iterations != [LATEST]:
        raise InputError("--checkpoint-iterations is for --load; --load-hf names one model: leave it out")
    require_seq_length(model, argv)
    return model, corpora


def _prepare(args: argparse.Namespace) -> list[int | None]:
    """Make the directories that will be needed, and look again which checkpoints there are. For rank 0."""
    Path(args.scores).mkdir(parents=True, exist_ok=True)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
    return [None] if args.load_hf else _iterations(args)


def _iterations(args: argparse.Namespace) -> list[int | None]:
    from megatron_miniplm.mcore.checkpoints import checkpoint_directory

    latest = checkpoint_directory(args.load)
    return choose_iterations(Path(args.load), latest, args.checkpoint_iterations, args.every_nth)


def _token_bytes(args: argparse.Namespace, model: "HuggingFaceModel | None") -> "np.ndarray | None":
    """UTF-8 bytes of text that each id stands for, int64; what ends a document, or is put before it, is no text.

    Returns:
        None where the tokenizer does not tell.
    """
    import numpy as np

    from megatron_miniplm.commands.scored_model import tokenizer_settings
    from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder

    settings = tokenizer_settings(args, model)
    if not settings.files:
        return None
    encoder = make_encoder(settings, num_threads=1)
    if encoder.token_bytes is None:
        return None
    token_bytes_V = np.array([len(piece) for piece in encoder.token_bytes], np.int64)
    token_bytes_V[encoder.encode([""])[0].astype(np.int64)] = 0
    if encoder.eod_id is not None:
        token_bytes_V[encoder.eod_id] = 0
    return token_bytes_V


def _report(
    args: argparse.Namespace,
    corpora: Sequence[HeldOutCorpus],
    evaluation: "HeldOutRun",
    rows: Sequence[Measured],
) -> None:
    """Print the table, and write `--json`. For rank 0."""
    print("\n" + "\n".join([*table(rows), *_notes(evaluation)]), flush=True)
    if args.json is None:
        return
    described = {
        corpus.name: {
            "prefixes": [str(prefix) for prefix in corpus.prefixes],
            "bytes_of": evaluation.texts[corpus.name].bytes_of,
            "trained_on": corpus.name in evaluation.trained_on,
        }
        for corpus in corpora
    }
    rules = {"context_tokens": args.seq_length, "overlap_tokens": args.window_overlap}
    counted = {"mask_eod": args.mask_eod, "score_first_token": args.score_first_token}
    checkpoints = [as_json(row) for row in rows]
    model = str(args.load_hf or args.load)
    write_result(args.json, {"model": model, **rules, **counted, "corpora": described, "checkpoints": checkpoints})


def _notes(evaluation: "HeldOutRun") -> list[str]:
    """What the numbers do not say by themselves."""
    bytes_of = {name: text.bytes_of for name, text in evaluation.texts.items()}
    remarks = {
        "the checkpoint was trained on it, so its loss is not held out": sorted(evaluation.trained_on),
        "bytes are of whole sequences, from the sidecar, unscored first tokens too": [
            name for name in bytes_of if bytes_of[name] == WHOLE_SEQUENCES
        ],
        "bytes are not known: neither this tokenizer nor a sidecar tells them": [
            name for name in bytes_of if bytes_of[name] is None
        ],
    }
    notes = [f"{', '.join(names)}: {remark}" for remark, names in remarks.items() if names]
    return ["", *notes] if notes else []
