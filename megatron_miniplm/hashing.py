"""Random numbers that belong to a sequence: equal on any number of ranks, in any order, after any restart."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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


def _mix(values_N: np.ndarray) -> np.ndarray:
    values_N = values_N + _GOLDEN
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))
