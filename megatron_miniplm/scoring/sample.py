"""A random part of the sequences, the same for every run and every cut into blocks."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def is_sampled(sequences: range, *, fraction: float, seed: int) -> np.ndarray:
    """Whether each sequence is in the sample, (sequences,) bool.

    A sequence's number is hashed (SplitMix64, Steele et al. 2014) and compared with the fraction, so that the choice
    depends on the number and the seed alone.

    Args:
        sequences: global ids.
        fraction: in [0, 1].
        seed: another seed gives an independent sample.
    """
    ids_N = np.arange(sequences.start, sequences.stop, dtype=np.uint64)
    with np.errstate(over="ignore"):
        hashes_N = _mix(ids_N + _mix(np.array([seed], np.uint64) + _GOLDEN))
    return (hashes_N >> np.uint64(11)) * 2.0**-53 < fraction


def _mix(values_N: np.ndarray) -> np.ndarray:
    values_N = values_N + _GOLDEN
    values_N = (values_N ^ (values_N >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values_N = (values_N ^ (values_N >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values_N ^ (values_N >> np.uint64(31))
