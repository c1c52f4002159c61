"""What only every token can tell: copies of sequences, and n-grams of held-out corpora that occur in the data.

Neither can be estimated from a sample of sequences: a copy whose twin was not drawn is none.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_miniplm.evaluation.analysis.data import Dataset

#: As many tokens as the n-grams by which GPT-3's training data was filtered had words (arXiv 2005.14165, appendix C).
NGRAM_TOKENS = 13
_BATCH_TOKENS = 1 << 20
_FILTER_BITS = 24


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What a pass over all tokens has found.

    Attributes:
        num_sequences, num_tokens: of sequences that have tokens.
        copies, copied_tokens: sequences beyond the first of each kind, and their tokens.
        held_out: by name of a held-out corpus, how many of its different n-grams occur, and how many it has.
    """

    num_sequences: int
    num_tokens: int
    copies: int
    copied_tokens: int
    held_out: dict[str, tuple[int, int]] = field(default_factory=dict)


def scan(
    dataset: Dataset, held_out: Mapping[str, np.ndarray], advance: Callable[[int], object] = lambda num_tokens: None
) -> Scan:
    """Read every token once; 8 bytes of memory a sequence.

    Args:
        held_out: by name, what `different_ngrams` gives.
        advance: called with every number of tokens that were read.
    """
    digests: list[np.ndarray] = []
    lengths: list[np.ndarray] = []
    overlaps = {name: _Overlap(hashes_V) for name, hashes_V in held_out.items()}
    for batch in _batches(dataset.sequences()):
        digests.append(np.array([_digest(tokens_T) for tokens_T in batch], np.uint64))
        lengths.append(np.array([len(tokens_T) for tokens_T in batch], np.int64))
        if overlaps:
            hashes_T = ngram_hashes(batch)
            for overlap in overlaps.values():
                overlap.look_for(hashes_T)
        advance(int(lengths[-1].sum()))
    digest_N, length_N = np.concatenate([np.zeros(0, np.uint64), *digests]), np.concatenate([[0], *lengths])[1:]
    _, first_V = np.unique(digest_N, return_index=True)
    is_copy_N = np.ones(len(digest_N), bool)
    is_copy_N[first_V] = False
    return Scan(
        num_sequences=len(digest_N),
        num_tokens=int(length_N.sum()),
        copies=int(is_copy_N.sum()),
        copied_tokens=int(length_N[is_copy_N].sum()),
        held_out={name: (overlap.num_found, len(overlap.hashes_V)) for name, overlap in overlaps.items()},
    )


def different_ngrams(dataset: Dataset) -> np.ndarray:
    """Hashes of all different n-grams of a data set, uint64, ascending; 8 bytes of memory a token."""
    hashes = [np.unique(ngram_hashes(batch)) for batch in _batches(dataset.sequences())]
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]))


def ngram_hashes(sequences: Sequence[np.ndarray], num_tokens: int = NGRAM_TOKENS) -> np.ndarray:
    """A hash for each n-gram that lies within one sequence, uint64: sums of tokens times random odd numbers.

    Two different n-grams have one hash with a probability of about 2**-60.
    """
    tokens_T = np.concatenate([np.zeros(0, np.uint64), *sequences]).astype(np.uint64)
    num_starts = len(tokens_T) - num_tokens + 1
    if num_starts <= 0:
        return np.zeros(0, np.uint64)
    odd_G = np.random.default_rng(0).integers(0, 1 << 64, num_tokens, np.uint64) | np.uint64(1)
    hashes = np.zeros(num_starts, np.uint64)
    for offset, odd in enumerate(odd_G):
        hashes += tokens_T[offset : offset + num_starts] * odd
    lengths_S = np.array([len(sequence) for sequence in sequences])
    stop_T = np.repeat(np.cumsum(lengths_S), lengths_S)
    return hashes[np.arange(num_starts) + num_tokens <= stop_T[:num_starts]]


class _Overlap:
    """Which of some hashes have been seen.

    Attributes:
        hashes_V: different and ascending.
    """

    def __init__(self, hashes_V: np.ndarray) -> None:
        self.hashes_V = hashes_V
        self._is_found_V = np.zeros(len(hashes_V), bool)
        self._may_be_there = np.zeros(1 << _FILTER_BITS, bool)  # spares most of the searches
        self._may_be_there[self._short(hashes_V)] = True

    @property
    def num_found(self) -> int:
        return int(self._is_found_V.sum())

    def look_for(self, hashes_T: np.ndarray) -> None:
        candidates = hashes_T[self._may_be_there[self._short(hashes_T)]]
        if not len(candidates):
            return
        place = np.minimum(np.searchsorted(self.hashes_V, candidates), len(self.hashes_V) - 1)
        self._is_found_V[place[self.hashes_V[place] == candidates]] = True

    @staticmethod
    def _short(hashes: np.ndarray) -> np.ndarray:
        return (hashes >> np.uint64(64 - _FILTER_BITS)).astype(np.int64)


def _digest(tokens_T: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(tokens_T.data, digest_size=8).digest(), "little")


def _batches(sequences: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Sequences that have tokens, some of them together."""
    batch: list[np.ndarray] = []
    num_tokens = 0
    for tokens_T in sequences:
        if len(tokens_T):
            batch.append(tokens_T)
            num_tokens += len(tokens_T)
        if num_tokens >= _BATCH_TOKENS:
            yield batch
            batch, num_tokens = [], 0
    if batch:
        yield batch
