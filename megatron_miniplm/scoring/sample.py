"""A random part of the sequences, the same for every run and every cut into blocks."""

import numpy as np

from megatron_miniplm.hashing import uniforms


def is_sampled(sequences: range, *, fraction: float, seed: int) -> np.ndarray:
    """Whether each sequence is in the sample, (sequences,) bool.

    A sequence's number is hashed and compared with the fraction, so that the choice depends on the number and the seed
    alone.

    Args:
        sequences: global ids.
        fraction: in [0, 1].
        seed: another seed gives an independent sample.
    """
    return uniforms(np.arange(sequences.start, sequences.stop), seed) < fraction
