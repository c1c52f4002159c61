"""How varied the tokens are, of a given number of them: numbers of more tokens are other numbers (Heaps' law)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: Share of the tokens that `covering` counts.
COVERED_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Of some tokens.

    Attributes:
        distinct: different tokens.
        entropy_bits: of the distribution of tokens as counted, which is below that of the whole data.
        covering: the fewest different tokens that make up COVERED_SHARE of all.
        distinct_2: different pairs of neighbours in a sequence, a pair (Li et al. 2016, arXiv 1510.03055). Their
            distinct-1 is `distinct` a token.
    """

    distinct: int
    entropy_bits: float
    covering: int
    distinct_2: float


def measure_vocabulary(sequences: Sequence[np.ndarray], num_tokens: int) -> Vocabulary:
    """Of the first `num_tokens` tokens of some sequences.

    Args:
        num_tokens: at least 1, at most what the sequences have.
    """
    tokens_T = np.concatenate(sequences)[:num_tokens].astype(np.int64)
    assert len(tokens_T) == num_tokens
    counts_V = np.sort(np.unique(tokens_T, return_counts=True)[1])[::-1]
    share_V = counts_V / num_tokens
    ends_T = np.cumsum([len(sequence) for sequence in sequences]) - 1
    is_pair_T = np.ones(num_tokens - 1, bool)
    is_pair_T[ends_T[ends_T < num_tokens - 1]] = False
    pairs = (tokens_T[:-1] << 32 | tokens_T[1:])[is_pair_T]
    return Vocabulary(
        distinct=len(counts_V),
        entropy_bits=float(-(share_V @ np.log2(share_V))) + 0.0,  # no -0.0
        covering=int(np.searchsorted(np.cumsum(counts_V), COVERED_SHARE * num_tokens)) + 1,
        distinct_2=len(np.unique(pairs)) / max(1, len(pairs)),
    )
