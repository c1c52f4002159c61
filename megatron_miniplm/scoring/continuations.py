"""Texts of which only the end counts: NLL sum of a continuation after its context, and whether it is the greedy one.

The questions of downstream tasks. They take the road of a corpus's sequences, from memory instead of a `.bin`: packed
into rows, through the schedule, with the tokens before the continuation as `Windows.num_context_W`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed
from megatron.core import mpu

from megatron_miniplm.errors import NonFiniteScoreError
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore import program
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.scoring.feed import BlockSums
from megatron_miniplm.scoring.nll import token_nll_and_argmax
from megatron_miniplm.scoring.rows import BlockRows, ScoringRules, Windows, pack_rows
from megatron_miniplm.scoring.scorer import Scorer

#: Continuations that are packed together.
BLOCK_CONTINUATIONS = 4096


@dataclass(frozen=True, kw_only=True)
class Continuations:
    """N token sequences under one roof, cheap to send to a thousand ranks.

    Attributes:
        tokens_S: contexts and continuations, one after the other, int32.
        stops_N: where each sequence ends in `tokens_S`, int64.
        num_scored_N: last tokens of each that are its continuation, int64, at least 1 and less than its length.
    """

    tokens_S: np.ndarray
    stops_N: np.ndarray
    num_scored_N: np.ndarray

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, context_tokens: int) -> "Continuations":
        """From (context, continuation), neither of them empty; what is too long for the model loses its start.

        Args:
            pairs: token ids.
            context_tokens: most tokens that the model is fed: all but the last of a sequence.
        """
        sequences = [[*context, *continuation][-(context_tokens + 1) :] for context, continuation in pairs]
        return cls(
            tokens_S=np.array([token for sequence in sequences for token in sequence], np.int32),
            stops_N=np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64),
            num_scored_N=np.array([len(continuation) for _, continuation in pairs], np.int64),
        )

    def __len__(self) -> int:
        return len(self.stops_N)

    def plan(self, places: range, *, row_tokens: int) -> BlockRows:
        """How a run of them is packed; depends on their lengths and `row_tokens` alone."""
        num_inputs_N = np.diff(self.stops_N, prepend=0)[places.start : places.stop] - 1
        windows = Windows(
            sequence_W=np.arange(len(places)),
            start_W=np.zeros(len(places), np.int64),
            num_inputs_W=num_inputs_N,
            num_context_W=num_inputs_N - self.num_scored_N[places.start : places.stop],
        )
        return BlockRows(sequences=places, windows=windows, rows=pack_rows(num_inputs_N, row_tokens=row_tokens))


class ContinuationPool(Pool):
    """Continuations where a corpus's sequences are expected."""

    def __init__(self, continuations: Continuations) -> None:
        super().__init__([])
        self._tokens_S = continuations.tokens_S
        self._bounds = [0, *continuations.stops_N.tolist()]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def sequence(self, index: int) -> np.ndarray:
        return self._tokens_S[self._bounds[index] : self._bounds[index + 1]]


class ContinuationSums(BlockSums):
    """Beside the NLL sums, how many tokens were the likeliest ones.

    Attributes:
        num_greedy_N: int64.
    """

    def __init__(self, num_sequences: int, num_rows: int) -> None:
        super().__init__(num_sequences, num_rows)
        self.num_greedy_N = np.zeros(num_sequences, np.int64)

    def add(self, sequence_K: np.ndarray, values_2K: np.ndarray) -> None:
        """Add one row's predictions: NLLs, and 1 where the target is the likeliest token."""
        nll_K, is_greedy_K = values_2K
        np.add.at(self.num_greedy_N, sequence_K, is_greedy_K.astype(np.int64))
        super().add(sequence_K, nll_K)


class ContinuationScorer(Scorer):
    """A loaded model that all ranks hold together; replicas share the rows."""

    sums_type = ContinuationSums

    def __init__(self, args: argparse.Namespace, chunks: list[Any], vocab_size: int) -> None:
        """Take over a model from `mcore.models.load_for_scoring`; the arguments are those of `Scorer`."""
        rules = ScoringRules(context_tokens=args.seq_length, overlap_tokens=0)
        super().__init__(args, chunks, vocab_size, rules, Pool([]))

    def score_continuations(self, continuations: Continuations) -> tuple[np.ndarray, np.ndarray]:
        """Score all of them; a collective call of all ranks.

        Returns:
            NLL sums in nats, (N,) float64, and whether each is what greedy decoding would give, (N,) bool. They depend
            on the continuations, the model and the size of a row, and by rounding on TP and PP; not on replicas.

        Raises:
            NonFiniteScoreError: on all ranks.
        """
        self._pool = ContinuationPool(continuations)
        starts = range(0, len(continuations), BLOCK_CONTINUATIONS)
        blocks = [
            continuations.plan(
                range(start, min(start + BLOCK_CONTINUATIONS, len(continuations))), row_tokens=self.row_tokens
            )
            for start in starts
        ]
        mine = [self._share(block) for block in blocks]
        sums_2N = np.zeros((2, len(continuations)))

        def take(position: int, sums: BlockSums) -> None:
            assert isinstance(sums, ContinuationSums)
            places = slice(blocks[position].sequences.start, blocks[position].sequences.stop)
            sums_2N[:, places] = sums.nll_N, sums.num_greedy_N

        is_visible = torch.distributed.get_rank() == 0
        with Progress(sum(len(block.rows) for block in mine), " rows", visible=is_visible) as progress:
            self.score(mine, take, on_row=lambda: progress.advance(1))
        nll_N, num_greedy_N = _add_ranks(sums_2N)
        self._fail_on_bad(blocks, nll_N)
        return nll_N, num_greedy_N == continuations.num_scored_N

    def _share(self, block: BlockRows) -> BlockRows:
        """This replica's rows."""
        lanes = self.replica.num_lanes
        replica, num_replicas = mpu.get_data_parallel_rank() // lanes, mpu.get_data_parallel_world_size() // lanes
        return BlockRows(sequences=block.sequences, windows=block.windows, rows=block.rows[replica::num_replicas])

    def _measure(self, hidden_KH: torch.Tensor, weight_VH: torch.Tensor, target_K: torch.Tensor, **rest: Any) -> Any:
        """(2, K) float32: NLLs, and 1 where the target is the likeliest token."""
        nll_K, best_K = token_nll_and_argmax(hidden_KH, weight_VH, target_K, **rest)
        return torch.stack((nll_K, (best_K == target_K).float()))

    def _fail_on_bad(self, blocks: Sequence[BlockRows], nll_N: np.ndarray) -> None:
        """A collective call: every rank holds the same sums."""
        bad = np.flatnonzero(~np.isfinite(nll_N))
        if not len(bad):
            return
        block, position = divmod(int(bad[0]), BLOCK_CONTINUATIONS)
        fault = self.find_fault(blocks[block], position)
        with program.alike_on_all_ranks():
            raise NonFiniteScoreError(
                f"{len(bad)} of {len(nll_N)} continuations got a score that is not finite: {fault}: "
                "look at the checkpoint, and at the precision (--bf16 reaches further than --fp16)"
            )


def _add_ranks(sums_2N: np.ndarray) -> np.ndarray:
    """Sum over all ranks. Each place is zero on all ranks but one, so that the result is exact in any order."""
    tensor = torch.from_numpy(sums_2N).to(torch.cuda.current_device())
    torch.distributed.all_reduce(tensor)
    return tensor.cpu().numpy()
