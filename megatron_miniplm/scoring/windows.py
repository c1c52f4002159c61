"""Sequences as windows that fit the context; every prediction counts exactly once."""

from dataclasses import dataclass

import numpy as np

from megatron_miniplm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """W windows, as columns.

    A window's inputs are the tokens `start .. start + num_inputs - 1` of its sequence, and the prediction after input i
    is for token `start + i + 1`. Of its predictions the first `num_context` only give context: an earlier window has
    scored their targets.

    Attributes:
        sequence_W: position of the sequence in the list that was given, int64.
        start_W: first token, int64.
        num_inputs_W: tokens fed to the model, int64, 1 to the context length.
        num_context_W: leading predictions that do not count, int64.
    """

    sequence_W: np.ndarray
    start_W: np.ndarray
    num_inputs_W: np.ndarray
    num_context_W: np.ndarray

    def __len__(self) -> int:
        return len(self.sequence_W)


def cut_windows(lengths_N: np.ndarray, *, context_tokens: int, overlap_tokens: int) -> Windows:
    """Cut sequences into windows.

    The first window of a sequence scores all its predictions. Each further one starts `overlap_tokens` before the first
    unscored prediction, so that every later token sees between `overlap_tokens` and `context_tokens` tokens before it.
    Sequences of fewer than two tokens have nothing to score and get no window.

    Args:
        lengths_N: tokens of each sequence, with the BOS token where one is put before it.
        context_tokens: most tokens that the model is fed at once.
        overlap_tokens: repeated between neighbouring windows, less than the context.
    """
    if not 0 <= overlap_tokens < context_tokens:
        raise InputError(f"--miniplm-window-overlap {overlap_tokens} must lie in [0, --seq-length {context_tokens})")
    num_predictions_N = np.maximum(lengths_N.astype(np.int64) - 1, 0)
    stride = context_tokens - overlap_tokens
    beyond_first_N = np.maximum(num_predictions_N - context_tokens, 0)
    num_windows_N = (num_predictions_N > 0) + -(-beyond_first_N // stride)
    sequence_W = np.repeat(np.arange(len(lengths_N)), num_windows_N)
    first_window_N = np.cumsum(num_windows_N) - num_windows_N
    start_W = (np.arange(len(sequence_W)) - first_window_N[sequence_W]) * stride
    return Windows(
        sequence_W=sequence_W,
        start_W=start_W,
        num_inputs_W=np.minimum(num_predictions_N[sequence_W] - start_W, context_tokens),
        num_context_W=np.where(start_W > 0, overlap_tokens, 0),
    )
