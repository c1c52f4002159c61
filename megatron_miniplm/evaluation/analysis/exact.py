"""Numbers of every sequence, from indices and sidecars: lengths, domains, bytes of text. No token is read."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.evaluation.analysis.data import Dataset
from megatron_miniplm.evaluation.held_out import Counting, HeldOutCorpus, describe
from megatron_miniplm.indexed.pieces import NO_DOMAIN

PERCENTILES = (5, 25, 50, 75, 95)


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
