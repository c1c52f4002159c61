"""The sequences of several prefixes under one numbering."""

import numpy as np

from megatron_miniplm.indexed import IndexedCorpus


class Pool:
    """The sequences of several prefixes: those of the first, then those of the second, and so on."""

    def __init__(self, corpora: list[IndexedCorpus]) -> None:
        self.read_from(corpora)

    def read_from(self, corpora: list[IndexedCorpus]) -> None:
        """Put other prefixes in place of those that it has."""
        self.corpora = corpora
        self._stops = np.cumsum([len(corpus) for corpus in corpora])

    def __len__(self) -> int:
        return int(self._stops[-1])

    def locate(self, index: int) -> tuple[IndexedCorpus, int]:
        """The corpus of the sequence with this global id, and its index there."""
        corpus = int(np.searchsorted(self._stops, index, side="right"))
        return self.corpora[corpus], index - int(self._stops[corpus]) + len(self.corpora[corpus])

    def sequence(self, index: int) -> np.ndarray:
        """Tokens of the sequence with this global id."""
        corpus, local_index = self.locate(index)
        return corpus.sequence(local_index)

    def lengths(self, sequences: range) -> np.ndarray:
        """Tokens of each of a run of sequences, int64."""
        parts, start = [], 0
        for corpus in self.corpora:
            lo, hi = max(sequences.start - start, 0), min(sequences.stop - start, len(corpus))
            parts.append(corpus.lengths_N[lo : max(lo, hi)])
            start += len(corpus)
        return np.concatenate(parts).astype(np.int64)
