"""What the proxy learns: true differences of the sequences that both models have scored."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.scoring.identity import is_sampled

#: Settings of a score that decide which tokens count; those of the scores hold for the proxy too.
COUNTING_RULES = ("bos_token", "masked_input")
#: The held-out part is drawn with the seed of the sample plus this, which nobody chooses by accident.
HOLDOUT_SEED = 1 << 32


@dataclass(frozen=True, kw_only=True)
class Targets:
    """M sequences whose difference is known, and how differences are made a target.

    Attributes:
        ids_M: global ids, int64, ascending.
        difference_M: reference NLL minus teacher NLL, nats a token, float64.
        num_tokens_M: scored tokens, at least 1, int64.
        is_held_out_M: never trained on, bool.
        mean, std: of the differences that are trained on, nats a token.
    """

    ids_M: np.ndarray
    difference_M: np.ndarray
    num_tokens_M: np.ndarray
    is_held_out_M: np.ndarray
    mean: float
    std: float

    @property
    def training_ids(self) -> np.ndarray:
        return self.ids_M[~self.is_held_out_M]

    def standardised(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training sequences: (difference - mean) / std, and what one scored token weighs (1 / tokens)."""
        train_M = ~self.is_held_out_M
        return (self.difference_M[train_M] - self.mean) / self.std, 1.0 / self.num_tokens_M[train_M]


def read_targets(teacher: ScoreStore, reference: ScoreStore, *, holdout_fraction: float) -> Targets:
    """Differences of the sequences that the teacher has sampled, split into those to train on and those held out.

    The held-out part is chosen by the hash that chose the sample, with another seed: it depends on nothing but the
    number of a sequence and `--sample-seed`.

    Args:
        teacher: a finished store with `sample_fraction` below 1.
        reference: a finished store of the same corpus, complete or sampled.
        holdout_fraction: share of the known differences that is held out, in (0, 1).

    Raises:
        InputError: the scores do not leave anything to predict, to learn or to compare with.
        FingerprintMismatchError: the stores do not belong together.
    """
    check_pair(teacher, reference)
    teacher.require_complete()
    reference.require_complete()
    ours, theirs = teacher.read_all(), reference.read_all()
    known_N = (ours["num_tokens"] != NOT_SCORED) & (theirs["num_tokens"] != NOT_SCORED)
    _check_counts(teacher, reference, np.where(known_N, ours["num_tokens"] - theirs["num_tokens"], 0))
    ids_M = np.flatnonzero(known_N & (ours["num_tokens"] > 0))
    num_tokens_M = ours["num_tokens"][ids_M].astype(np.int64)
    difference_M = (theirs["nll"][ids_M].astype(np.float64) - ours["nll"][ids_M]) / num_tokens_M
    seed = int(teacher.identity["settings"]["sample_seed"] or 0) + HOLDOUT_SEED
    held_out_M = is_sampled(range(len(known_N)), fraction=holdout_fraction, seed=seed)[ids_M]
    train_M = ~held_out_M
    if train_M.sum() < 2 or held_out_M.sum() < 2:
        raise InputError(
            f"{teacher.directory} and {reference.directory} have both scored {len(ids_M)} sequences, of which "
            f"{int(held_out_M.sum())} are held out: at least two are needed to train and two to compare; sample more, "
            "or change --holdout-fraction"
        )
    mean, std = float(difference_M[train_M].mean()), float(difference_M[train_M].std())
    if not std > 0:
        raise InputError(
            f"all differences between {teacher.directory} and {reference.directory} are {mean:.4f} nats a token: there "
            "is nothing to learn; are both scores of one model?"
        )
    return Targets(
        ids_M=ids_M,
        difference_M=difference_M,
        num_tokens_M=num_tokens_M,
        is_held_out_M=held_out_M,
        mean=mean,
        std=std,
    )


def check_pair(teacher: ScoreStore, reference: ScoreStore) -> None:
    """Refuse what nothing can be learnt from, by the identities of the stores alone.

    Raises:
        InputError: a store holds predictions, or the teacher has left nothing to predict.
        FingerprintMismatchError: the stores do not belong together.
    """
    for store in (teacher, reference):
        if store.quantity != "NLL":
            raise InputError(f"{store.directory} holds {store.quantity}s: give the NLLs that score-corpus has written")
    if teacher.identity["settings"].get("sample_fraction", 1) == 1:
        raise InputError(
            f"{teacher.directory} holds scores of every sequence: there is nothing to predict; give it to "
            "difference-sampling, or score a part of the corpus with --sample-fraction"
        )
    if teacher.identity["corpus"] != reference.identity["corpus"]:
        raise FingerprintMismatchError(
            f"{teacher.directory} holds scores of {_described(teacher.identity['corpus'])}, but {reference.directory} "
            f"of {_described(reference.identity['corpus'])}: score the same prefixes, in the same order"
        )
    for rule in COUNTING_RULES:
        ours, theirs = (store.identity["settings"].get(rule) for store in (teacher, reference))
        if ours != theirs:
            raise FingerprintMismatchError(
                f"{teacher.directory} was scored with {rule} {ours}, {reference.directory} with {theirs}: score both "
                "with the same settings"
            )


def check_corpus(store: ScoreStore, corpus: list[dict[str, Any]]) -> None:
    """Refuse scores of another corpus than the one that is given.

    Args:
        store: scores.
        corpus: `name`, `fingerprint` and `num_sequences` of each prefix, as in a store's identity.

    Raises:
        FingerprintMismatchError: they differ.
    """
    if store.identity["corpus"] != corpus:
        raise FingerprintMismatchError(
            f"{store.directory} holds scores of {_described(store.identity['corpus'])}, but --corpus is "
            f"{_described(corpus)}: give the prefixes that were scored, in the same order"
        )


def _check_counts(teacher: ScoreStore, reference: ScoreStore, excess_N: np.ndarray) -> None:
    if excess_N.any():
        first = int(np.argmax(excess_N != 0))
        raise FingerprintMismatchError(
            f"sequence {first} has {excess_N[first]:+d} scored tokens in {teacher.directory} compared with "
            f"{reference.directory}: score both with the same settings"
        )


def _described(corpus: list[dict[str, Any]]) -> str:
    return ", ".join(f"{prefix['name']} [{prefix['fingerprint'][:SHORT_HEX]}]" for prefix in corpus)


class TrainingStream(Pool):
    """Number i is a sequence of pass `i // M`, so that a batch is a run of numbers and a step knows its batch.

    What step t trains on depends on the seed, the batch size and t alone: any number of replicas and any interruption
    see the same batches.

    Args:
        pool: where the sequences are.
        ids_M: global ids of the training sequences.
        seed: of NumPy's PCG64, with the number of the pass.
    """

    def __init__(self, pool: Pool, ids_M: np.ndarray, *, seed: int) -> None:
        super().__init__(pool.corpora)
        self._pool = pool
        self._ids_M = ids_M
        self._order = lru_cache(maxsize=2)(
            lambda epoch: np.random.default_rng((seed, epoch)).permutation(len(self._ids_M))
        )

    def members(self, numbers: range) -> np.ndarray:
        """Positions in `ids_M` of a run of numbers, int64."""
        epochs_N, places_N = np.divmod(np.arange(numbers.start, numbers.stop), len(self._ids_M))
        parts = [self._order(epoch)[places_N[epochs_N == epoch]] for epoch in np.unique(epochs_N).tolist()]
        return np.concatenate(parts)

    def locate(self, index: int) -> tuple[IndexedCorpus, int]:
        return self._pool.locate(int(self._ids_M[self.members(range(index, index + 1))[0]]))

    def lengths(self, sequences: range) -> np.ndarray:
        located = (self._pool.locate(int(index)) for index in self._ids_M[self.members(sequences)])
        return np.array([corpus.lengths_N[index] for corpus, index in located], np.int64)
