"""Random numbers that belong to a sequence: equal on any number of ranks, in any order, after any restart."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_GUMBEL_STREAM = 0x67756D62  # keeps the noise apart from what else is drawn with the user's seed


def uniforms(ids_N: np.ndarray, *seeds: int) -> np.ndarray:
    """One number in [0, 1) an id, a multiple of 2**-53, from SplitMix64 (Steele et al. 2014).

    Args:
        ids_N: global ids of sequences, any integer dtype.
        seeds: another list of seeds gives independent numbers.

    Returns:
        (N,) float64.
    """
    stream = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for seed in seeds:
            stream = _mix(stream + np.array([seed], np.uint64) + _GOLDEN)
        hashes_N = _mix(ids_N.astype(np.uint64) + stream)
    return (hashes_N >> np.uint64(11)) * 2.0**-53


def perturbed(value_N: np.ndarray, ids_N: np.ndarray, *, temperature: float, seed: int) -> np.ndarray:
    """Values whose top k are a sample of k without replacement, each draw in proportion to exp(value / temperature).

    Gumbel noise is added (Kool et al. 2019, arXiv 1903.06059). The noise of a sequence depends on its id and the seed
    alone.

    Returns:
        (N,) float64; -inf stays -inf.
    """
    uniform_N = (np.floor(uniforms(ids_N, seed, _GUMBEL_STREAM) * 2.0**52) + 0.5) * 2.0**-52  # neither 0 nor 1
    return value_N / temperature - np.log(-np.log(uniform_N))


def _mix(values_N: np.ndarray) -> np.ndarray:
    values_N = values_N + _GOLDEN
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))
