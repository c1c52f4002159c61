"""What every sequence and every token tells. None of it can be estimated from a sample.

Lengths, domains and bytes of text come from indices and sidecars, without reading a token. A scan of all tokens finds
copies of sequences (the twin of one in a sample is rarely drawn too), and n-grams of held-out corpora.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from megatron_miniplm.evaluation.analysis.data import Dataset
from megatron_miniplm.evaluation.held_out import Counting, HeldOutCorpus, describe
from megatron_miniplm.indexed.pieces import NO_DOMAIN

PERCENTILES = (5, 25, 50, 75, 95)
#: As many tokens as the n-grams by which GPT-3's training data was filtered had words (arXiv 2005.14165, appendix C).
NGRAM_TOKENS = 13
_BATCH_TOKENS = 1 << 20
_FILTER_BITS = 24


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens a sequence.

    Attributes:
        percentiles: of PERCENTILES, each the smallest length that at least so many per cent do not exceed.
        histogram: number of sequences by the least power of two that is above the length: 1 for empty ones.
    """

    num_sequences: int
    num_tokens: int
    shortest: int
    longest: int
    percentiles: tuple[int, ...]
    histogram: dict[int, int]

    @property
    def mean(self) -> float:
        return self.num_tokens / self.num_sequences


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a data set's text comes from, as its sidecars say.

    Attributes:
        sequences, tokens: by domain, in the order of names; empty where no sequence has one.
        text_bytes: UTF-8 bytes of the text; None where a prefix has no sidecar.
    """

    sequences: dict[str, int]
    tokens: dict[str, int]
    text_bytes: int | None


def tally(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How often every value occurs, in memory that grows with the number of different values only.

    Returns:
        values_V ascending and counts_V, int64.
    """
    values_V, counts_V = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for chunk in chunks:
        found, counts = np.unique(chunk, return_counts=True)
        values_V, place = np.unique(np.concatenate([values_V, found]), return_inverse=True)
        both = np.concatenate([counts_V, counts])
        counts_V = np.zeros(len(values_V), np.int64)
        np.add.at(counts_V, place, both)
    return values_V, counts_V


def measure_lengths(chunks: Iterable[np.ndarray]) -> Lengths:
    """Of at least one sequence.

    Args:
        chunks: tokens of every sequence.
    """
    values_V, counts_V = tally(chunks)
    below_V = np.cumsum(counts_V)
    ranks = [-(-percent * int(below_V[-1]) // 100) for percent in PERCENTILES]
    bins_V = np.array([1 << int(value).bit_length() for value in values_V])
    return Lengths(
        num_sequences=int(below_V[-1]),
        num_tokens=int(values_V @ counts_V),
        shortest=int(values_V[0]),
        longest=int(values_V[-1]),
        percentiles=tuple(int(values_V[np.searchsorted(below_V, rank)]) for rank in ranks),
        histogram={edge: int(counts_V[bins_V == edge].sum()) for edge in np.unique(bins_V).tolist()},
    )


def measure_origin(dataset: Dataset) -> Origin:
    """Read the sidecars once; about 50 bytes of memory for each sequence of the largest prefix.

    Raises:
        CorruptArtifactError: a sidecar is of another corpus.
    """
    sequences: dict[str, int] = {}
    tokens: dict[str, int] = {}
    text_bytes: int | None = 0
    for member in dataset.members:
        found = describe(HeldOutCorpus(name=dataset.name, prefixes=(member.part.prefix,)), Counting(), None)
        chosen = slice(None) if member.indices is None else member.indices
        domain_N = found.domain_N[chosen]
        lengths_N = np.concatenate([np.zeros(0, np.int32), *member.lengths()])
        if found.text_bytes_N is None:
            text_bytes = None
        elif text_bytes is not None:
            text_bytes += int(found.text_bytes_N[chosen].sum())
        for name, code in (found.domains or {NO_DOMAIN: 0}).items():
            inside_N = domain_N == code
            sequences[name] = sequences.get(name, 0) + int(inside_N.sum())
            tokens[name] = tokens.get(name, 0) + int(lengths_N[inside_N].sum(dtype=np.int64))
    if sequences.keys() <= {NO_DOMAIN}:
        return Origin(sequences={}, tokens={}, text_bytes=text_bytes)
    return Origin(sequences=dict(sorted(sequences.items())), tokens=dict(sorted(tokens.items())), text_bytes=text_bytes)


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
