"""Fit a proxy, let it predict the difference of every sequence, and report how far to trust it.

SAVE/proxy.json         what is fitted to what; a directory with another one is refused
SAVE/iter_...           Megatron checkpoints of the fit
PREDICTIONS/            a score store: `nll` holds the predicted difference times the number of tokens
PREDICTIONS/agreement.json
"""

import argparse
import importlib.metadata
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.directories import remove_dead_writer, temporaries_kept
from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of, load_manifest
from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.artifacts.scores import PREDICTED_DIFFERENCE, ScoreStore
from megatron_miniplm.baselines.proxy_fitting import Fitting, ProxyScorer
from megatron_miniplm.baselines.proxy_targets import (
    COUNTING_RULES,
    Targets,
    check_corpus,
    read_targets,
)
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore import checkpoints, models, program
from megatron_miniplm.mcore.checkpoint_saving import sole_saver
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity
from megatron_miniplm.scoring.engine import fill_store
from megatron_miniplm.scoring.identity import identity_of
from megatron_miniplm.scoring.rows import ScoringRules


def agreement(predicted_N: np.ndarray, true_N: np.ndarray, *, ratio: float = 0.5) -> dict[str, Any]:
    """Numbers that tell whether a proxy may choose in the teacher's place.

    Args:
        predicted_N, true_N: of N >= 2 sequences that the proxy was not trained on, in order of their ids.
        ratio: share that a selection would keep.

    Returns:
        `num_sequences`; `pearson` and `spearman` (equal values share the mean of their ranks), None where one side is
        constant; `r_squared`, 1 - squared error / variance of the true ones, below 0 for a proxy worse than their mean;
        `ratio`; `overlap`, the share of the truly best that the predictions choose too; `overlap_at_random`, what a
        draw would reach on average.
    """
    num_kept = max(1, round(ratio * len(true_N)))
    variance = float(true_N.var())
    squared_error = float(np.mean((predicted_N - true_N) ** 2))
    return {
        "num_sequences": len(true_N),
        "pearson": correlation(predicted_N, true_N),
        "spearman": correlation(mean_ranks(predicted_N), mean_ranks(true_N)),
        "r_squared": 1 - squared_error / variance if variance > 0 else None,
        "ratio": ratio,
        "overlap": len(np.intersect1d(_best(predicted_N, num_kept), _best(true_N, num_kept))) / num_kept,
        "overlap_at_random": num_kept / len(true_N),
    }


def correlation(left_N: np.ndarray, right_N: np.ndarray) -> float | None:
    """Pearson's correlation; None where one side is constant."""
    left_N, right_N = left_N - left_N.mean(), right_N - right_N.mean()
    scale = float(np.sqrt((left_N @ left_N) * (right_N @ right_N)))
    return float(left_N @ right_N) / scale if scale > 0 else None


def mean_ranks(values_N: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs, float64."""
    _, which_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    last_U = np.cumsum(counts_U)
    return (last_U - (counts_U - 1) / 2)[which_N]


def _best(values_N: np.ndarray, num_kept: int) -> np.ndarray:
    """The greatest values; of equal ones the first, as difference sampling breaks ties."""
    return np.lexsort((np.arange(len(values_N)), -values_N))[:num_kept]


def agreement_lines(report: dict[str, Any]) -> list[str]:
    """The report as a table for people."""

    def number(name: str) -> str:
        return "none" if report[name] is None else f"{report[name]:.3f}"

    return [
        f"agreement with the true difference on {report['num_sequences']:,} held-out sequences:",
        f"  Pearson correlation   {number('pearson'):>7}",
        f"  Spearman correlation  {number('spearman'):>7}",
        f"  R squared             {number('r_squared'):>7}",
        f"  overlap at {report['ratio']:<10} {number('overlap'):>7}   (at random: {number('overlap_at_random')})",
    ]


PROXY = "proxy.json"
AGREEMENT = "agreement.json"
#: Megatron's args that decide what a step does to the weights, in `proxy.json`.
FIT_ARGS = (
    *("train_iters", "global_batch_size", "seed", "optimizer", "lr", "min_lr", "lr_decay_style", "lr_decay_iters"),
    *("lr_warmup_iters", "lr_warmup_fraction", "weight_decay", "clip_grad", "adam_beta1", "adam_beta2", "adam_eps"),
)


def fit_and_predict(
    args: argparse.Namespace,
    prefixes: Sequence[Path],
    model: ModelIdentity,
    tokenizer: TokenizerIdentity,
    rules: ScoringRules,
) -> None:
    """Fit a proxy to the differences that are known, and predict those of all sequences of `prefixes`.

    Fitting continues at the last checkpoint of `--save`, predicting at the blocks that the store lacks. One process at
    a time fits into `--save`; any number of them predict.

    Args:
        args: Megatron's, validated and initialised, with our flags.
        prefixes: of the corpus, in the order that defines the global sequence ids.
        model: what the fit starts from.
        tokenizer: that of the flags.
        rules: how sequences meet the model; what counts is taken from the teacher's scores.

    Raises:
        MiniPLMError: the inputs do not belong together, another process fits into `--save`, a checkpoint cannot be
            written, a loss or a prediction is not finite, or a signal asked to stop (`Interrupted`).
    """
    teacher_dir, reference_dir = Path(args.teacher_scores), Path(args.reference_scores)
    _check_layout(args)
    rules = replace(rules, **program.on_rank_zero(lambda: _counting_rules(ScoreStore.open(teacher_dir))))
    identity = program.on_rank_zero(lambda: identity_of(args, prefixes, model, tokenizer, rules))
    targets = program.on_rank_zero(lambda: _read(args, identity["corpus"]))
    program.say_once(
        f"{len(targets.training_ids):,} sequences to train on, {int(targets.is_held_out_M.sum()):,} held out; "
        f"difference {targets.mean:.4f} +- {targets.std:.4f} nats a token"
    )
    pool = Pool([IndexedCorpus.open(prefix) for prefix in prefixes])
    if is_fitted := _is_fitted(args):
        program.on_rank_zero(lambda: remove_dead_writer(Path(args.save)))
    with nullcontext() if is_fitted else _sole_fitter(Path(args.save)):
        fit = program.on_rank_zero(lambda: _start_or_match(args, identity, targets))
        scorer = None if _is_fitted(args) else _fitted(args, pool, rules, targets)
    directory = checkpoints.checkpoint_directory(args.save)
    weights = program.on_rank_zero(lambda: checkpoints.weights_fingerprint(directory))
    proxy = ModelIdentity(path=directory, weights=weights, vocab_size=model.vocab_size)
    store = _open_store(args, identity, proxy)
    missing = program.on_rank_zero(store.missing_blocks)
    if missing:
        fill_store(store, scorer or _fitted(args, pool, rules, targets), pool, missing, None)
    inputs = _inputs(store.directory, proxy, (teacher_dir, reference_dir), prefixes, identity)
    program.on_rank_zero(lambda: _finish(store, inputs, targets, fit))


def _check_layout(args: argparse.Namespace) -> None:
    """Refuse what was never tried: a proxy is a small model.

    Raises:
        InputError: names the flag.
    """
    refused = {
        "--expert-model-parallel-size": args.expert_model_parallel_size > 1,
        "--virtual-pipeline-model-parallel-size": args.virtual_pipeline_model_parallel_size is not None,
        "--context-parallel-size": args.context_parallel_size > 1,
        "--mtp-num-layers": bool(args.mtp_num_layers),
        "--use-megatron-fsdp": getattr(args, "use_megatron_fsdp", False),
        "--use-torch-fsdp2": getattr(args, "use_torch_fsdp2", False),
    }
    if given := [flag for flag, is_given in refused.items() if is_given]:
        with program.alike_on_all_ranks():
            raise InputError(f"{', '.join(given)}: not supported by fit-proxy, which fits a small model: leave it out")


def _counting_rules(teacher: ScoreStore) -> dict[str, int | None]:
    """Which tokens count, as the teacher's scores have it; a prediction is a token's times the same number."""
    return {rule: teacher.identity["settings"].get(rule) for rule in COUNTING_RULES}


def _read(args: argparse.Namespace, corpus: list[dict[str, Any]]) -> Targets:
    teacher, reference = ScoreStore.open(Path(args.teacher_scores)), ScoreStore.open(Path(args.reference_scores))
    for store in (teacher, reference):
        check_corpus(store, corpus)
    return read_targets(teacher, reference, holdout_fraction=args.holdout_fraction)


def _start_or_match(args: argparse.Namespace, identity: dict[str, Any], targets: Targets) -> dict[str, Any]:
    """Write `proxy.json`, or compare with the one beside the checkpoints that are there.

    Raises:
        FingerprintMismatchError: `--save` holds another fit.
        CorruptArtifactError: its `proxy.json` cannot be read.
        InputError: it holds checkpoints of something else.
    """
    save = Path(args.save)
    settings = identity["settings"]
    fit = {
        "start_from": identity["model"]["weights"],
        "corpus": [prefix["fingerprint"] for prefix in identity["corpus"]],
        "teacher_scores": load_manifest(Path(args.teacher_scores)).fingerprint,
        "reference_scores": load_manifest(Path(args.reference_scores)).fingerprint,
        "holdout_fraction": args.holdout_fraction,
        "target_mean": targets.mean,
        "target_std": targets.std,
        **{name: settings[name] for name in ("context_tokens", "overlap_tokens", *COUNTING_RULES, "precision")},
        **{name: getattr(args, name) for name in FIT_ARGS},
    }
    path = save / PROXY
    if not checkpoints.has_checkpoint(save):
        save.mkdir(parents=True, exist_ok=True)
        write_json(path, fit)  # what an earlier command left here has saved no step
        return fit
    if not path.exists():
        raise InputError(f"{save} holds a checkpoint that is no proxy (it has no {PROXY}): give another --save")
    there = read_json(path, what="record of the fit", remedy="give another --save")
    for name in fit:
        if there.get(name) != fit[name]:
            raise FingerprintMismatchError(
                f"{save} holds a proxy that is fitted otherwise ({name}: {there.get(name)} there, {fit[name]} here): "
                "give another --save, or delete this one"
            )
    return fit


def _sole_fitter(save: Path) -> AbstractContextManager[None]:
    """Hold `--save` while a proxy is fitted into it; a collective call. A checkpoint without its end is removed."""

    def discard() -> None:
        discard_unfinished(save)

    return sole_saver(save, start=discard, discard=discard)


def discard_unfinished(save: Path) -> None:
    """Remove the checkpoint that a process was killed in, or for which the disk had no space."""
    if not (save / PROXY).exists():
        return  # whatever is there is not ours
    last = saved_steps(save)
    for directory in save.glob("iter_*"):
        step = directory.name.removeprefix("iter_")
        if last is not None and step.isdecimal() and int(step) > last:
            shutil.rmtree(directory)


def saved_steps(save: Path) -> int | None:
    """Steps of the last whole checkpoint, 0 without one; None where something else than a fit has saved it."""
    if not checkpoints.has_checkpoint(save):
        return 0
    step = (save / checkpoints.TRACKER).read_text().strip()
    return int(step) if step.isdecimal() else None


def _is_fitted(args: argparse.Namespace) -> bool:
    """Whether `--save` holds the last step."""
    return program.on_rank_zero(lambda: saved_steps(Path(args.save)) == args.train_iters)


def _fitted(args: argparse.Namespace, pool: Pool, rules: ScoringRules, targets: Targets) -> ProxyScorer:
    """The proxy after its last step, loaded or trained."""
    args.hidden_dropout = args.attention_dropout = 0.0  # batches must be the same at any data-parallel size
    args.overlap_grad_reduce = args.overlap_param_gather = args.calculate_per_token_loss = args.async_save = False
    args.check_for_nan_in_loss_and_grad = False  # asks for the rerun machine of Megatron's own loop; ours looks itself
    args.finetune = True  # of the model to start from only the weights
    scorer = ProxyScorer(args, models.load_for_scoring(args), rules, pool, targets)
    Fitting(args, scorer, pool, rules, targets).run()
    return scorer


def _open_store(args: argparse.Namespace, identity: dict[str, Any], proxy: ModelIdentity) -> ScoreStore:
    """The store of the predictions of this very checkpoint."""
    directory = Path(args.difference_scores)
    settings = {name: value for name, value in identity["settings"].items() if not name.startswith("sample_")}
    identity = {
        "model": {**identity["model"], "weights": proxy.weights},
        "corpus": identity["corpus"],
        "settings": {**settings, "quantity": PREDICTED_DIFFERENCE},
    }
    program.on_rank_zero(lambda: ScoreStore.create_or_resume(directory, identity) and None)
    return ScoreStore(directory, identity)


def _inputs(
    directory: Path,
    proxy: ModelIdentity,
    scores_dirs: tuple[Path, Path],
    prefixes: Sequence[Path],
    identity: dict[str, Any],
) -> tuple[ArtifactInput, ...]:
    scores = zip(("teacher scores", "reference scores"), scores_dirs, strict=True)
    return (
        input_of("model", proxy.path, proxy.weights, relative_to=directory),
        *(input_of(role, path, load_manifest(path).fingerprint, relative_to=directory) for role, path in scores),
        *(
            input_of("corpus", prefix, corpus["fingerprint"], relative_to=directory)
            for prefix, corpus in zip(prefixes, identity["corpus"], strict=True)
        ),
    )


def _finish(store: ScoreStore, inputs: tuple[ArtifactInput, ...], targets: Targets, fit: dict[str, Any]) -> None:
    """Complete the store, and compare what it says of the held-out sequences with the truth."""
    versions = {name: importlib.metadata.version(name) for name in ("megatron-core", "torch")}
    counts = store.finish(inputs, versions).counts
    held_out_M = targets.is_held_out_M
    scores = store.read_all()[targets.ids_M[held_out_M]]
    predicted_M = scores["nll"].astype(np.float64) / scores["num_tokens"]
    report = agreement(predicted_M, targets.difference_M[held_out_M])
    trained = {"num_training_sequences": len(targets.training_ids), "num_steps": fit["train_iters"]}
    with temporaries_kept(store.directory):
        write_json(store.directory / AGREEMENT, {**report, **trained})
    print("\n".join(agreement_lines(report)))
    print(f"{store.directory}: predicted differences of {counts['num_sequences']:,} sequences", flush=True)
