"""A block of sequences as packed rows: what the model is fed, and what becomes of its predictions.

Axes: S tokens of a row, D documents of a row (windows of sequences, and the padding), K predictions that count.
"""

import bisect
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.reader import Pool


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
        raise InputError(f"--window-overlap {overlap_tokens} must lie in [0, --seq-length {context_tokens})")
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


#: A row that is not full may end early, at a multiple of this: keeps matrix shapes friendly and few.
ROW_MULTIPLE = 64


def pack_rows(num_inputs_W: np.ndarray, *, row_tokens: int) -> list[np.ndarray]:
    """Best-fit decreasing: longest window first, each into the fullest row that still has room for it.

    O(W log W + W R) for W windows and R rows, in memory of the same order: a block is the whole of what is looked at,
    so that neither the number of workers nor the order of the blocks changes a row.

    Args:
        num_inputs_W: tokens of each window, 1 to `row_tokens`.
        row_tokens: tokens of a full row.

    Returns:
        Positions of the windows of each row, int64: the fullest rows first, the one with most room last; in a row the
        longest first.
    """
    order_W = np.lexsort((np.arange(len(num_inputs_W)), -num_inputs_W))
    rooms: list[tuple[int, int]] = []  # (tokens left, row), ascending; rows without room have left the list
    rows: list[list[int]] = []
    left: list[int] = []
    for window, num_inputs in zip(order_W.tolist(), num_inputs_W[order_W].tolist(), strict=True):
        at = bisect.bisect_left(rooms, (num_inputs, -1))
        if at < len(rooms):
            _, row = rooms.pop(at)
        else:
            row = len(rows)
            rows.append([])
            left.append(row_tokens)
        rows[row].append(window)
        left[row] -= num_inputs
        if left[row]:
            bisect.insort(rooms, (left[row], row))
    fullest_first = sorted(range(len(rows)), key=lambda row: (left[row], row))
    return [np.array(rows[row], np.int64) for row in fullest_first]


def trimmed_length(num_tokens: int, *, row_tokens: int) -> int:
    """Length of a row that may end early: the tokens, rounded up to `ROW_MULTIPLE`, at most a full row."""
    return min(row_tokens, -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE)


@dataclass(frozen=True, kw_only=True)
class ScoringRules:
    """What counts, and how sequences meet the model; all of it is part of a score's identity.

    Attributes:
        context_tokens: most tokens of a window (`--seq-length`).
        overlap_tokens: repeated between the windows of one sequence.
        bos_token: put before every sequence, so that its first token is scored too; None: it is not scored.
        masked_input: predictions whose input is this token do not count (`--mask-eod`); None: all count.
    """

    context_tokens: int
    overlap_tokens: int
    bos_token: int | None = None
    masked_input: int | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Documents side by side; padding, where there is some, is the last of them.

    Attributes:
        tokens_S: int64.
        positions_S: of each token in its document, int64.
        boundaries: starts of the documents, then S.
        num_windows: documents that are windows of sequences; those after them are padding.
        scored_K: which predictions count, ascending positions in the row, int64.
        targets_K: their targets, int64.
        sequence_K: the sequence of each, counted from the start of the block, int64; equal ones lie together.
    """

    tokens_S: np.ndarray
    positions_S: np.ndarray
    boundaries: list[int]
    num_windows: int
    scored_K: np.ndarray
    targets_K: np.ndarray
    sequence_K: np.ndarray


@dataclass(frozen=True, kw_only=True)
class BlockRows:
    """How a block is packed, before a token of it is read.

    Attributes:
        sequences: global ids of the block.
        windows: of these sequences.
        rows: positions of the windows of each row.
    """

    sequences: range
    windows: Windows
    rows: list[np.ndarray]

    @property
    def num_tokens(self) -> int:
        """Tokens that the model is fed, without padding."""
        return int(self.windows.num_inputs_W.sum())


def plan_block(
    pool: Pool, sequences: range, rules: ScoringRules, *, row_tokens: int, chosen_N: np.ndarray | None = None
) -> BlockRows:
    """Cut and pack a run of sequences.

    Args:
        pool: where they are.
        sequences: global ids.
        rules: how they are cut.
        row_tokens: tokens of a full row.
        chosen_N: which of them to score, bool; None: all.
    """
    lengths_N = pool.lengths(sequences)
    if rules.bos_token is not None:
        lengths_N = lengths_N + (lengths_N > 0)
    if chosen_N is not None:
        lengths_N = np.where(chosen_N, lengths_N, 0)
    windows = cut_windows(lengths_N, context_tokens=rules.context_tokens, overlap_tokens=rules.overlap_tokens)
    return BlockRows(sequences=sequences, windows=windows, rows=pack_rows(windows.num_inputs_W, row_tokens=row_tokens))


def read_rows(pool: Pool, block: BlockRows, rules: ScoringRules, *, row_tokens: int, trim: bool) -> Iterator[Row]:
    """Read the tokens of a planned block, row by row.

    Args:
        pool: where the sequences are.
        block: from `plan_block`, with the same rules.
        rules: what counts.
        row_tokens: tokens of a full row.
        trim: whether a row that is not full may be shorter.
    """
    for windows in block.rows:
        num_tokens = int(block.windows.num_inputs_W[windows].sum())
        length = trimmed_length(num_tokens, row_tokens=row_tokens) if trim else row_tokens
        yield _read_row(pool, block, rules, windows.tolist(), length)


def empty_row(length: int, context_tokens: int) -> Row:
    """A row of padding, for a rank that must keep step with others."""
    nothing = np.empty(0, np.int64)
    return Row(
        tokens_S=np.zeros(length, np.int64),
        positions_S=np.arange(length) % context_tokens,
        boundaries=[*range(0, length, context_tokens), length],
        num_windows=0,
        scored_K=nothing,
        targets_K=nothing,
        sequence_K=nothing,
    )


def _read_row(pool: Pool, block: BlockRows, rules: ScoringRules, windows: list[int], length: int) -> Row:
    tokens_S, positions_S = np.zeros(length, np.int64), np.empty(length, np.int64)
    boundaries, scored, targets, sequence = [0], [], [], []
    for window in windows:
        position = int(block.windows.sequence_W[window])
        tokens = pool.sequence(block.sequences[position])
        if rules.bos_token is not None:
            tokens = np.concatenate(([rules.bos_token], tokens))
        start, num_inputs = int(block.windows.start_W[window]), int(block.windows.num_inputs_W[window])
        tokens = tokens[start : start + num_inputs + 1]
        at = boundaries[-1]
        boundaries.append(at + num_inputs)
        tokens_S[at : at + num_inputs] = tokens[:-1]
        positions_S[at : at + num_inputs] = np.arange(num_inputs)
        counts = np.arange(int(block.windows.num_context_W[window]), num_inputs)
        if rules.masked_input is not None:
            counts = counts[tokens[counts] != rules.masked_input]
        scored.append(at + counts)
        targets.append(tokens[counts + 1].astype(np.int64))
        sequence.append(np.full(len(counts), position))
    padding = length - boundaries[-1]
    if padding:
        positions_S[boundaries[-1] :] = np.arange(padding) % rules.context_tokens
        boundaries.extend((*range(boundaries[-1] + rules.context_tokens, length, rules.context_tokens), length))
    return Row(
        tokens_S=tokens_S,
        positions_S=positions_S,
        boundaries=boundaries,
        num_windows=len(windows),
        scored_K=np.concatenate(scored),
        targets_K=np.concatenate(targets),
        sequence_K=np.concatenate(sequence),
    )
