"""The scoring run: identity and store, the model, every replica's work, and the end of the store."""

import argparse
import importlib.metadata
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch.distributed
from megatron.training import get_tensorboard_writer

from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import (
    TRAINING_DATA,
    ArtifactInput,
    Manifest,
    input_of,
    is_prefix,
    load_manifest,
    manifest_path,
)
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import Interrupted, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore import models, program
from megatron_miniplm.mcore.flops import peak_flops
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity
from megatron_miniplm.mcore.replica import StopRequest
from megatron_miniplm.scoring.dispatch import Dispatch
from megatron_miniplm.scoring.identity import identity_of, is_sampled
from megatron_miniplm.scoring.rows import ScoringRules
from megatron_miniplm.scoring.scorer import Scorer
from megatron_miniplm.scoring.watch import Watch

logger = logging.getLogger(__name__)


def score_corpus(
    args: argparse.Namespace,
    prefixes: Sequence[Path],
    model: ModelIdentity,
    tokenizer: TokenizerIdentity,
    rules: ScoringRules,
    *,
    directory: Path | None = None,
    shared: "SharedScorer | None" = None,
) -> None:
    """Score every sequence of `prefixes` that the store lacks; whoever scores the last one finishes the store.

    Args:
        args: Megatron's, validated and initialised, with our flags.
        prefixes: of the corpus, in the order that defines the global sequence ids.
        model: what `models.load_for_scoring` will load.
        tokenizer: that of the flags.
        rules: how sequences meet the model.
        directory: of the store; None: `--scores`.
        shared: of this model, where it scores several corpora one after the other.

    Raises:
        MiniPLMError: the corpus, the model or the store cannot be used, a score is not finite, or a signal asked to
            stop (`Interrupted`).
    """
    directory = directory or Path(args.scores)
    identity = program.on_rank_zero(lambda: identity_of(args, prefixes, model, tokenizer, rules))
    missing = program.on_rank_zero(lambda: missing_at_start(ScoreStore.create_or_resume(directory, identity)))
    store = ScoreStore(directory, identity)
    program.say_once(
        f"{store.plan.num_sequences:,} sequences in {store.plan.num_blocks} blocks, {len(missing)} of them to be scored"
    )
    if missing:
        shared = shared or SharedScorer(args, model.vocab_size, rules)
        scorer, pool = shared.over(prefixes)
        fill_store(store, scorer, pool, missing, _chooser(args), shared.stop)
    inputs = (
        input_of("model", model.path, model.weights, relative_to=directory),
        *(
            input_of("corpus", prefix, corpus["fingerprint"], relative_to=directory)
            for prefix, corpus in zip(prefixes, identity["corpus"], strict=True)
        ),
    )
    all_inputs = (*inputs, *_training_data(model, directory))
    program.on_rank_zero(lambda: _finish(store, all_inputs, in_turn=bool(missing)))


class SharedScorer:
    """A model that is loaded when the first corpus needs it, and kept for those after it.

    Attributes:
        stop: one for all stores of the process, so that a signal between two of them is not lost; None: each its own.
    """

    def __init__(
        self, args: argparse.Namespace, vocab_size: int, rules: ScoringRules, stop: StopRequest | None = None
    ) -> None:
        self.stop = stop
        self._args, self._vocab_size, self._rules = args, vocab_size, rules
        self._scorer: Scorer | None = None
        self._pool = Pool([])

    def over(self, prefixes: Sequence[Path]) -> tuple[Scorer, Pool]:
        """The scorer, and the pool that it reads from now on."""
        self._pool.read_from([IndexedCorpus.open(prefix) for prefix in prefixes])
        if self._scorer is None:
            chunks = models.load_for_scoring(self._args)
            self._scorer = Scorer(self._args, chunks, self._vocab_size, self._rules, self._pool)
        self._scorer.num_flops, self._scorer.num_fed_tokens = 0.0, 0
        return self._scorer, self._pool


def _training_data(model: ModelIdentity, directory: Path) -> Iterator[ArtifactInput]:
    """What the model has seen: selection must not mistake it for text that it knows well."""
    for prefix in model.training_data:
        if is_prefix(prefix):
            yield input_of(TRAINING_DATA, prefix, IndexedCorpus.open(prefix).fingerprint(), relative_to=directory)
        else:
            logger.warning(
                "%s, which the model was trained on, is not here: selection cannot tell what it has seen", prefix
            )


def _chooser(args: argparse.Namespace) -> Callable[[range], np.ndarray] | None:
    if args.sample_fraction == 1:
        return None
    return partial(is_sampled, fraction=args.sample_fraction, seed=args.sample_seed)


def fill_store(
    store: ScoreStore,
    scorer: Scorer,
    pool: Pool,
    missing: Sequence[int],
    choose: Callable[[range], np.ndarray] | None,
    stop: StopRequest | None = None,
) -> None:
    """Let every replica work until the store is full, or until `stop` (by default one of its own) is made.

    Raises:
        Interrupted: on every rank, when any rank was told to stop.
    """
    stop = stop or StopRequest()
    is_visible = torch.distributed.get_rank() == 0
    tensorboard = get_tensorboard_writer()  # on the last rank, where --tensorboard-dir is given
    tokens_of_missing = {}
    if is_visible or tensorboard is not None:
        tokens_of_missing = {block: _num_tokens(pool, store.plan.sequences(block), choose) for block in missing}
    watch = Watch(store, tokens_of_missing, visible=is_visible, tensorboard=tensorboard, peak_flops=peak_flops())
    error: MiniPLMError | None = None
    try:
        with watch:
            leases = Leases(store.directory) if scorer.replica.is_writer else None
            Dispatch(store, scorer, pool, leases, stop, watch, choose).run()
            watch.look(scorer.num_flops, scorer.num_fed_tokens)
    except MiniPLMError as found:
        error = found
        stop.make()
    _leave_together(store, error, stop)


class _Outcome(IntEnum):
    DONE = 0
    STOPPED = 1
    FAILED = 2


def _leave_together(store: ScoreStore, error: MiniPLMError | None, stop: StopRequest) -> None:
    """Wait until every replica has left its loop, and raise on all ranks what happened on any; a collective call."""
    mine = _Outcome.FAILED if error is not None else _Outcome.STOPPED if stop.came_by_signal else _Outcome.DONE
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    # The worst that happened, and of the ranks with an error of their own the first.
    speaks = error is not None and not error.reported_elsewhere
    worst = torch.tensor(mine * (world_size + 1) + speaks * (world_size - rank), device=torch.cuda.current_device())
    torch.distributed.all_reduce(worst, op=torch.distributed.ReduceOp.MAX)
    outcome, before_end = divmod(int(worst.item()), world_size + 1)
    if outcome == _Outcome.FAILED:
        _raise_from(world_size - before_end, error)
    if outcome == _Outcome.STOPPED and program.on_rank_zero(store.missing_blocks):
        with program.alike_on_all_ranks():
            raise Interrupted("told to stop; all finished blocks are kept, the same command continues")


def _raise_from(source: int, error: MiniPLMError | None) -> NoReturn:
    """Raise the error of rank `source` on all ranks; a collective call.

    Rank 0 prints it, whatever other ranks met: all replicas meet a NaN in the weights, and one line is enough.
    """
    box: list[Any] = [error]
    torch.distributed.broadcast_object_list(box, src=source)
    found = type(box[0])(f"{box[0]} (found by rank {source})") if source else box[0]
    found.reported_elsewhere = torch.distributed.get_rank() != 0
    raise found


def _num_tokens(pool: Pool, sequences: range, choose: Callable[[range], np.ndarray] | None) -> int:
    lengths_N = pool.lengths(sequences)
    return int(lengths_N.sum() if choose is None else lengths_N[choose(sequences)].sum())


def _finish(store: ScoreStore, inputs: tuple[ArtifactInput, ...], *, in_turn: bool) -> None:
    """Check all blocks and write the manifest; `in_turn`: one of the jobs that have filled the store together does."""
    versions = {name: importlib.metadata.version(name) for name in ("megatron-core", "torch")}
    counts = (finish_in_turn if in_turn else ScoreStore.finish)(store, inputs, versions).counts
    program.say_once(
        f"{store.directory}: {counts['num_sequences']:,} sequences, {counts['num_tokens']:,} scored tokens"
    )


POLL_SECONDS = 1.0


def missing_at_start(store: ScoreStore) -> list[int]:
    """The missing blocks; a manifest that was there before they were seen to be missing is not true, and removed."""
    had_manifest = store.has_manifest
    missing = store.missing_blocks()
    if missing and had_manifest:
        manifest_path(store.directory).unlink(missing_ok=True)
    return missing


def finish_in_turn(store: ScoreStore, inputs: tuple[ArtifactInput, ...], versions: dict[str, str]) -> Manifest:
    """`ScoreStore.finish` by one of the jobs that call this; returns to all once there is a manifest.

    Reading costs the file server three calls a block: a hundred jobs that share a store must not each do it. Who does
    is agreed on as for blocks, by a claim of a block that no store has; if that job dies, another takes over.

    Raises:
        CorruptArtifactError: a block is damaged.
    """
    end = store.plan.num_blocks
    with Leases(store.directory) as leases:
        while not store.has_manifest:
            if not leases.claim(end):
                time.sleep(POLL_SECONDS)
                continue
            if not store.has_manifest:
                store.finish(inputs, versions)
            leases.release(end)
    return load_manifest(store.directory)
