"""Sampling without replacement as a top set of perturbed values."""

import numpy as np

from megatron_miniplm.hashing import uniforms

_STREAM = 0x67756D62  # keeps the noise apart from what else is drawn with the user's seed


def perturbed(value_N: np.ndarray, ids_N: np.ndarray, *, temperature: float, seed: int) -> np.ndarray:
    """Values whose top k are a sample of k without replacement, each draw in proportion to exp(value / temperature).

    Gumbel noise is added (Kool et al. 2019, arXiv 1903.06059). The noise of a sequence depends on its id and the seed
    alone.

    Returns:
        (N,) float64; -inf stays -inf.
    """
    uniform_N = (np.floor(uniforms(ids_N, seed, _STREAM) * 2.0**52) + 0.5) * 2.0**-52  # neither 0 nor 1
    return value_N / temperature - np.log(-np.log(uniform_N))
