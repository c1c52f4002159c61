"""Teacher and reference scores of one corpus side by side, a run of sequences at a time."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Self

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import Manifest
from megatron_miniplm.artifacts.scores import NOT_SCORED, PREDICTED_DIFFERENCE, ScoreStore
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import HEADER, LENGTH_DTYPE, idx_path

#: Sequences looked at together: arrays of 1 MB. Sums over a corpus are sums over these, whoever computes them.
CHUNK_SEQUENCES = 1 << 17

TEACHER, REFERENCE, PREDICTIONS = "teacher scores", "reference scores", "predicted differences"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of sequences of one prefix.

    Attributes:
        prefix: position of the prefix in the corpus.
        first: index of the first sequence in the prefix.
        start: its global id.
        size: number of sequences.
    """

    prefix: int
    first: int
    start: int
    size: int

    @property
    def ids_N(self) -> np.ndarray:
        """Global ids, int64."""
        return np.arange(self.start, self.start + self.size)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the models said of the sequences of a piece.

    Attributes:
        teacher_nll_N, reference_nll_N: sums in nats, float32; None without that model. Where a difference is predicted
            the teacher's is 0 and the reference's the prediction.
        num_scored_N: scored tokens, int32.
    """

    teacher_nll_N: np.ndarray | None
    reference_nll_N: np.ndarray | None
    num_scored_N: np.ndarray


class ScoredCorpus:
    """Finished stores of one corpus, and the corpus.

    Attributes:
        stores: by role, `TEACHER`, `REFERENCE` or `PREDICTIONS`.
        manifests: theirs.
        prefixes: of the corpus, in the order that defines global ids.
        fingerprints: of the prefixes when they were scored.
        starts_P: global id of the first sequence of every prefix, and the number of all sequences.
    """

    def __init__(self, stores: dict[str, ScoreStore], manifests: dict[str, Manifest]) -> None:
        self.stores = stores
        self.manifests = manifests
        role, store = next(iter(stores.items()))
        parents = [parent for parent in manifests[role].inputs if parent.role == "corpus"]
        self.prefixes = [parent_path(store.directory, parent) for parent in parents]
        self.fingerprints: list[Fingerprint] = [parent.fingerprint for parent in parents]
        self.starts_P = [0, *accumulate(entry["num_sequences"] for entry in store.identity["corpus"])]
        self._opening: dict[int, Future[IndexedCorpus]] = {}

    @classmethod
    def open(cls, directories: dict[str, Path]) -> Self:
        """Open the stores that are given, by role.

        Raises:
            InputError: a store is incomplete, holds something else than its role says, or scores of a sample where
                there is no prediction of the rest.
            FingerprintMismatchError: they are of different corpora, or a corpus has changed since it was scored.
        """
        stores = {role: ScoreStore.open(directory) for role, directory in directories.items()}
        manifests = {role: store.require_complete() for role, store in stores.items()}
        for role, store in stores.items():
            _check_quantity(role, store)
            if PREDICTIONS not in stores:
                _refuse_sample(store, manifests[role])
        first, *others = stores.values()
        for other in others:
            _check_same_corpus(first, other)
        return cls(stores, manifests)

    def open_in_background(self, positions: Iterable[int]) -> None:
        """Begin to open prefixes and to compare them with what was scored, which reads their whole index."""
        store = next(iter(self.stores.values()))
        threads = ThreadPoolExecutor(num_usable_threads())
        for position in positions:
            if position not in self._opening:
                arguments = (store, self.prefixes[position], self.fingerprints[position])
                self._opening[position] = threads.submit(_open_unchanged, *arguments)
        threads.shutdown(wait=False)

    def corpus(self, position: int) -> IndexedCorpus:
        """One prefix, unchanged since it was scored.

        Raises:
            FingerprintMismatchError: it has changed.
        """
        self.open_in_background([position])
        return self._opening[position].result()

    @property
    def corpora(self) -> list[IndexedCorpus]:
        """All prefixes, unchanged since they were scored.

        Raises:
            FingerprintMismatchError: one has changed.
        """
        positions = range(len(self.prefixes))
        self.open_in_background(positions)
        return [self.corpus(position) for position in positions]

    @property
    def num_sequences(self) -> int:
        return self.starts_P[-1]

    def pieces(self, prefixes: Iterable[int] | None = None) -> list[Piece]:
        """The corpus, or some of its prefixes, in order and in pieces that are the same for every caller."""
        found = []
        for prefix in range(len(self.prefixes)) if prefixes is None else prefixes:
            start, stop = self.starts_P[prefix : prefix + 2]
            for first in range(0, stop - start, CHUNK_SEQUENCES):
                size = min(CHUNK_SEQUENCES, stop - start - first)
                found.append(Piece(prefix=prefix, first=first, start=start + first, size=size))
        return found

    def scores(self, piece: Piece) -> Scores:
        """Read the scores of a piece.

        Raises:
            CorruptArtifactError: a block is damaged.
            FingerprintMismatchError: the stores have scored other tokens of a sequence.
        """
        sequences = range(piece.start, piece.start + piece.size)
        found = {role: store.read(sequences) for role, store in self.stores.items()}
        if PREDICTIONS in found:
            return self._predicted(piece, found)
        known_N = np.True_
        for role in found:
            self._check_same_counts(piece, found, next(iter(found)), role, known_N)
        nlls = {role: scores["nll"] for role, scores in found.items()}
        return Scores(
            teacher_nll_N=nlls.get(TEACHER),
            reference_nll_N=nlls.get(REFERENCE),
            num_scored_N=next(iter(found.values()))["num_tokens"],
        )

    def lengths(self, piece: Piece) -> np.ndarray:
        """Tokens of every sequence of a piece, int32; read, not mapped, so that no page stays in memory."""
        path = idx_path(self.prefixes[piece.prefix])
        offset_bytes = HEADER.size + LENGTH_DTYPE.itemsize * piece.first
        length_N = np.fromfile(path, LENGTH_DTYPE, piece.size, offset=offset_bytes)
        if len(length_N) < piece.size:
            self.corpus(piece.prefix)  # says what has become of it
        return length_N

    def _predicted(self, piece: Piece, found: dict[str, np.ndarray]) -> Scores:
        """A difference that is known goes before one that is predicted."""
        predicted = found[PREDICTIONS]
        teacher_nll_N, reference_nll_N = np.zeros(piece.size, np.float32), predicted["nll"]
        if TEACHER in found:
            teacher, reference = found[TEACHER], found[REFERENCE]
            known_N = (teacher["num_tokens"] != NOT_SCORED) & (reference["num_tokens"] != NOT_SCORED)
            self._check_same_counts(piece, found, TEACHER, REFERENCE, known_N)
            self._check_same_counts(piece, found, TEACHER, PREDICTIONS, known_N)
            teacher_nll_N = np.where(known_N, teacher["nll"], teacher_nll_N)
            reference_nll_N = np.where(known_N, reference["nll"], reference_nll_N)
        return Scores(
            teacher_nll_N=teacher_nll_N, reference_nll_N=reference_nll_N, num_scored_N=predicted["num_tokens"]
        )

    def _check_same_counts(
        self, piece: Piece, found: dict[str, np.ndarray], one: str, other: str, compared_N: np.ndarray | np.bool_
    ) -> None:
        ours_N, theirs_N = found[one]["num_tokens"], found[other]["num_tokens"]
        differs_N = compared_N & (ours_N != theirs_N)
        if differs_N.any():
            first = int(np.argmax(differs_N))
            raise FingerprintMismatchError(
                f"sequence {piece.start + first} has {ours_N[first]} scored tokens in {self.stores[one].directory} and "
                f"{theirs_N[first]} in {self.stores[other].directory}: score both with the same settings"
            )


def map_in_order[Item, Result](
    function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None
) -> Iterator[Result]:
    """`map` with threads, some results ahead of the caller; reading, checksums and NumPy run beside one another.

    Args:
        num_threads: default: the cores of this process, shared among the ranks of torchrun on this host.
    """
    num_threads = num_threads or num_usable_threads()
    if num_threads == 1:
        yield from map(function, items)  # a thread beside this one would wait for the interpreter's lock
        return
    with ThreadPoolExecutor(num_threads) as threads:
        waiting: list[Future[Result]] = []
        try:
            for item in items:
                waiting.append(threads.submit(function, item))
                if len(waiting) > 2 * num_threads:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()
        finally:
            for future in waiting:
                future.cancel()


def num_usable_threads() -> int:
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _open_unchanged(store: ScoreStore, prefix: Path, fingerprint: Fingerprint) -> IndexedCorpus:
    """A corpus that has the fingerprint with which it was scored.

    Raises:
        FingerprintMismatchError: it is no longer what was scored.
    """
    corpus = IndexedCorpus.open(prefix)
    if (found := corpus.fingerprint()) != fingerprint:
        raise FingerprintMismatchError(
            f"{store.directory} was computed on {prefix.name} [{fingerprint[:SHORT_HEX]}], but "
            f"{prefix} is now [{found[:SHORT_HEX]}]: score it again, or bring the old corpus back"
        )
    return corpus


def _check_quantity(role: str, store: ScoreStore) -> None:
    expected = PREDICTED_DIFFERENCE if role == PREDICTIONS else "NLL"
    if store.quantity != expected:
        raise InputError(
            f"{store.directory} holds {store.quantity}s, expected {expected}s: what fit-proxy writes goes to "
            "--difference-scores, what score-corpus writes to --teacher-scores and --reference-scores"
        )


def _refuse_sample(store: ScoreStore, manifest: Manifest) -> None:
    num_sequences = manifest.counts["num_sequences"]
    if num_left_out := num_sequences - manifest.counts["num_scored_sequences"]:
        raise InputError(
            f"{store.directory} holds scores of a random part of the corpus ({num_left_out:,} of {num_sequences:,} "
            "sequences were left out): score all of it, or let miniplm fit-proxy predict the difference of the "
            "rest and give --difference-scores"
        )


def _check_same_corpus(one: ScoreStore, other: ScoreStore) -> None:
    def described(store: ScoreStore) -> str:
        return ", ".join(
            f"{prefix['name']} [{prefix['fingerprint'][:SHORT_HEX]}]" for prefix in store.identity["corpus"]
        )

    if one.identity["corpus"] != other.identity["corpus"]:
        raise FingerprintMismatchError(
            f"{one.directory} holds scores of {described(one)}, but {other.directory} of "
            f"{described(other)}: score the same prefixes, in the same order, with both models"
        )
