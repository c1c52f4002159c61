"""How much better the teacher knows a sequence than the reference does."""

import numpy as np

REDUCTIONS = ("mean", "sum")


def differences(
    teacher_nll_N: np.ndarray, reference_nll_N: np.ndarray, num_tokens_N: np.ndarray, reduction: str = "mean"
) -> np.ndarray:
    """Reference NLL minus teacher NLL; positive where the teacher knows better.

    `mean` divides by the number of scored tokens, which is what the paper's released code ranks by; `sum` is the
    paper's formula, log p_teacher(x) / p_reference(x). They rank alike only where all sequences have one length.

    Args:
        teacher_nll_N, reference_nll_N: NLL sums in nats.
        num_tokens_N: scored tokens.
        reduction: `mean` (nats a token) or `sum` (nats).

    Returns:
        (N,) float64; -inf where nothing was scored, so that such sequences are kept last.
    """
    difference_N = reference_nll_N.astype(np.float64) - teacher_nll_N.astype(np.float64)
    if reduction == "mean":
        difference_N /= np.maximum(num_tokens_N, 1)
    return np.where(num_tokens_N > 0, difference_N, -np.inf)
