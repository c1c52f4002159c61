"""How long the sequences of a corpus are, and what scoring feeds of them to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore.flops import ModelShape


@dataclass(frozen=True, kw_only=True)
class SequenceLengths:
    """How many sequences there are of each length.

    Attributes:
        lengths_U: unequal lengths in tokens, int64.
        counts_U: sequences of each, float64: parts of a corpus need not be whole numbers.
    """

    lengths_U: np.ndarray
    counts_U: np.ndarray

    @classmethod
    def all_equal(cls, num_tokens: float, sequence_tokens: int) -> Self:
        return cls(lengths_U=np.array([sequence_tokens]), counts_U=np.array([num_tokens / sequence_tokens]))

    @classmethod
    def of(cls, lengths_N: np.ndarray) -> Self:
        """Of sequences of these lengths in tokens."""
        lengths_U, counts_U = np.unique(lengths_N, return_counts=True)
        return cls(lengths_U=lengths_U.astype(np.int64), counts_U=counts_U.astype(np.float64))

    @classmethod
    def of_prefixes(cls, prefixes: Sequence[Path]) -> Self:
        """Of the sequences that the `.idx` of each prefix lists.

        Raises:
            InputError: they have no tokens.
        """
        parts = [cls.of(IndexedCorpus.open(prefix).lengths_N) for prefix in prefixes]
        lengths_U, place_A = np.unique(np.concatenate([part.lengths_U for part in parts]), return_inverse=True)
        if not lengths_U.any():
            raise InputError(f"{', '.join(map(str, prefixes))}: no tokens, expected a corpus to plan for")
        counts_A = np.concatenate([part.counts_U for part in parts])
        return cls(lengths_U=lengths_U, counts_U=np.bincount(place_A, counts_A, len(lengths_U)))

    @property
    def num_sequences(self) -> int:
        return round(float(self.counts_U.sum()))

    @property
    def num_tokens(self) -> float:
        return float(self.lengths_U @ self.counts_U)

    def part(self, fraction: float) -> Self:
        """A random part, of which all lengths have the same share."""
        return type(self)(lengths_U=self.lengths_U, counts_U=self.counts_U * fraction)

    def windows(self, *, context_tokens: int, overlap_tokens: int) -> Self:
        """What a model is fed, by length: all tokens but the last, cut into windows as `score-corpus` cuts them.

        Neighbouring windows of a sequence that is longer than the context share `overlap_tokens` tokens.
        """
        predictions_U = np.maximum(self.lengths_U - 1, 0)
        stride = context_tokens - overlap_tokens
        num_full_U = -(-np.maximum(predictions_U - context_tokens, 0) // stride)
        lengths_W = np.concatenate([predictions_U - num_full_U * stride, np.full_like(num_full_U, context_tokens)])
        counts_W = np.concatenate([self.counts_U, self.counts_U * num_full_U])
        return type(self)(lengths_U=lengths_W, counts_U=counts_W)

    def forward_flops(self, shape: ModelShape) -> float:
        """Of a model that reads each sequence for itself."""
        pairs = zip(self.lengths_U.tolist(), self.counts_U.tolist(), strict=True)
        return sum(count * shape.forward_flops([length]) for length, count in pairs)
