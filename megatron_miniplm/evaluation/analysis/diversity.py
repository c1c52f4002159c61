"""How different sequences are from one another, from their embeddings.

Axes: S sequences, D dimensions.
"""

import math

import numpy as np

#: What is added to a kernel matrix, so that copies do not make its determinant zero; two copies among orthogonal
#: embeddings cost -ln(2 RIDGE) = 3.9 nats.
RIDGE = 0.01


def mean_cosine_distance(unit_SD: np.ndarray) -> float:
    """Mean over all pairs of different sequences of 1 - cosine; 0 where all point alike, 1 where all are orthogonal.

    In time that grows with S only: the sum over all pairs is the squared norm of the sum.

    Args:
        unit_SD: at least two rows of norm 1.
    """
    num_sequences = len(unit_SD)
    unit_SD = unit_SD.astype(np.float64)
    off_diagonal = float(np.square(unit_SD.sum(axis=0)).sum() - np.square(unit_SD).sum())
    return 1 - off_diagonal / (num_sequences * (num_sequences - 1))


def log_determinant_distance(unit_SD: np.ndarray) -> float:
    """Log-determinant distance to a most diverse set of as many sequences, in nats a sequence; 0 is most diverse.

    (ln det K_max - ln det K) / S after Wang et al. 2024 (arXiv 2402.02318), with the kernel of cosines
    K = (1 - RIDGE) X X^T + RIDGE I. Its diagonal is 1, so that ln det K <= 0 (Hadamard), with equality for orthogonal
    embeddings alone: those are the most diverse set, and ln det K_max = 0. With S > D they cannot be reached.
    """
    num_sequences = len(unit_SD)
    unit_SD = unit_SD.astype(np.float64)
    kernel_SS = (1 - RIDGE) * (unit_SD @ unit_SD.T)
    np.fill_diagonal(kernel_SS, 1.0)
    _, log_determinant = np.linalg.slogdet(kernel_SS)
    return max(0.0, -float(log_determinant) / num_sequences)  # rounding


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean of independent measurements, and its standard error."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))
