"""The scoring run: missing blocks, dealt to the replicas, through the model, to the store."""

import argparse
import importlib.metadata
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from megatron.core import mpu
from megatron.training import get_tokenizer

from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import InputError, Interrupted
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore import models, program
from megatron_miniplm.progress import Progress
from megatron_miniplm.scoring.pool import Pool
from megatron_miniplm.scoring.scorer import Scorer

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


def score_corpus(args: argparse.Namespace, prefixes: Sequence[Path]) -> None:
    """Score every sequence of `prefixes` that the store lacks, and finish the store when none is left.

    Args:
        args: Megatron's, validated and initialised, with our `miniplm_*` flags.
        prefixes: of the corpus, in the order that defines the global sequence ids.

    Raises:
        MiniPLMError: the corpus, the checkpoint or the store cannot be used, or a signal asked to stop (`Interrupted`).
    """
    directory = Path(args.miniplm_scores)
    vocab_size = get_tokenizer().vocab_size
    checkpoint = models.checkpoint_directory(args.load)
    if args.use_checkpoint_args:
        models.take_architecture(args, checkpoint)
    identity = program.on_rank_zero(lambda: _identity(args, prefixes, checkpoint, vocab_size))
    missing = program.on_rank_zero(lambda: ScoreStore.create_or_resume(directory, identity).missing_blocks())
    store = ScoreStore(directory, identity)
    program.say_once(
        f"{store.plan.num_sequences:,} sequences in {store.plan.num_blocks} blocks, {len(missing)} of them to be scored"
    )
    if missing:
        scorer = Scorer(args, models.load_for_scoring(args), vocab_size)
        _score_blocks(store, scorer, Pool([IndexedCorpus.open(prefix) for prefix in prefixes]), missing)
    inputs = (
        input_of("model", checkpoint, identity["model"]["weights"], relative_to=directory),
        *(
            input_of("corpus", prefix, corpus["fingerprint"], relative_to=directory)
            for prefix, corpus in zip(prefixes, identity["corpus"], strict=True)
        ),
    )
    program.on_rank_zero(lambda: _finish(store, inputs))


def _identity(args: argparse.Namespace, prefixes: Sequence[Path], checkpoint: Path, vocab_size: int) -> dict[str, Any]:
    """What is scored with what. The layout (TP, PP, DP) and the micro-batch size are not part of it."""
    models.check_architecture(args, checkpoint)
    corpora = [IndexedCorpus.open(prefix) for prefix in prefixes]
    for corpus in corpora:
        _check_vocabulary(corpus, vocab_size)
    if not any(len(corpus) for corpus in corpora):
        raise InputError("the corpus has no sequences")
    fingerprints = [corpus.verified_fingerprint() for corpus in corpora]
    if len(set(fingerprints)) < len(fingerprints):
        twins = [
            str(prefix) for prefix, found in zip(prefixes, fingerprints, strict=True) if fingerprints.count(found) > 1
        ]
        raise InputError(f"{' and '.join(twins)} are the same corpus: give each once")
    return {
        "model": {"weights": models.weights_fingerprint(checkpoint), "architecture": models.architecture(args)},
        "corpus": [
            {"name": corpus.prefix.name, "fingerprint": found, "num_sequences": len(corpus)}
            for corpus, found in zip(corpora, fingerprints, strict=True)
        ],
        "settings": {
            "block_sequences": args.miniplm_block_sequences,
            "context_tokens": args.seq_length,
            "window_overlap_tokens": args.miniplm_window_overlap,
            "vocab_size": vocab_size,
            "precision": str(args.params_dtype).removeprefix("torch."),
        },
    }


def _check_vocabulary(corpus: IndexedCorpus, vocab_size: int, num_probed: int = 256) -> None:
    """Refuse a corpus of another tokenizer, as far as its token ids show it in evenly spaced sequences."""
    step = max(1, len(corpus) // num_probed)
    for index in range(0, len(corpus), step):
        tokens = corpus.sequence(index)
        if len(tokens) and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
            raise InputError(
                f"{corpus.prefix}: sequence {index} holds token {int(tokens.max())}, the tokenizer has {vocab_size}: "
                "give the tokenizer that the corpus was made with"
            )


def _score_blocks(store: ScoreStore, scorer: Scorer, pool: Pool, missing: Sequence[int]) -> None:
    """Score this replica's share of the missing blocks; stops between two blocks when a signal has come.

    Raises:
        Interrupted: on every rank, when any rank was told to stop.
    """
    stop = _StopRequest()
    mine = blocks_of_replica(missing, mpu.get_data_parallel_rank(), mpu.get_data_parallel_world_size())
    num_replicas = mpu.get_data_parallel_world_size()  # the others are taken to be as fast as rank 0's
    num_tokens = sum(int(pool.lengths(store.plan.sequences(block)).sum()) for block in missing)
    with Progress(num_tokens, " tokens", visible=torch.distributed.get_rank() == 0) as progress:
        for block in mine:
            sequences = store.plan.sequences(block)
            nll_N, num_tokens_N = scorer.score(pool, sequences)
            if scorer.is_last_stage and mpu.get_tensor_model_parallel_rank() == 0:
                store.write_block(block, nll_N, num_tokens_N)
            progress.advance(int(pool.lengths(sequences).sum()) * num_replicas)
            if stop.agreed(mpu.get_model_parallel_group()):
                break
    if stop.agreed(None):
        with program.alike_on_all_ranks():
            raise Interrupted("told to stop; all finished blocks are kept, the same command continues")


def blocks_of_replica(missing: Sequence[int], replica: int, num_replicas: int) -> Sequence[int]:
    """Deal the missing blocks to the data-parallel replicas in turn."""
    return missing[replica::num_replicas]


def _finish(store: ScoreStore, inputs: tuple[ArtifactInput, ...]) -> None:
    versions = {name: importlib.metadata.version(name) for name in ("megatron-core", "torch")}
    manifest = store.finish(inputs, versions)
    counts = manifest.counts
    program.say_once(
        f"{store.directory}: {counts['num_sequences']:,} sequences, {counts['num_tokens']:,} scored tokens"
    )


class _StopRequest:
    """Remembers a stop signal until all ranks that must act on it have heard of it."""

    def __init__(self) -> None:
        self._received = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: object) -> None:
        self._received = True

    def agreed(self, group: torch.distributed.ProcessGroup | None) -> bool:
        """Whether any rank of the group (None: of the world) was told to stop; a collective call."""
        flag = torch.tensor([int(self._received)], device=torch.cuda.current_device())
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=group)
        return bool(flag.item())
