"""A model on Megatron's forward-only schedule that turns blocks of sequences into NLL sums.

Every rank of a replica walks through the same rows, which it reads from the mapped corpus itself; the last pipeline
stage turns hidden states into token NLLs. Rows of several blocks follow one another through one schedule, so that the
pipeline fills and drains once for all of them.
"""

import argparse
import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import get_model_config

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.mcore.models import take_output_weight
from megatron_miniplm.mcore.packed_attention import packing_parameters, use_packed_attention
from megatron_miniplm.mcore.replica import Replica
from megatron_miniplm.scoring.feed import BlockSums, Collector, HostRow, ReadAhead
from megatron_miniplm.scoring.nll import token_nll
from megatron_miniplm.scoring.rows import ROW_MULTIPLE, BlockRows, ScoringRules, empty_row, plan_block, read_rows
from megatron_miniplm.scoring.watch import FaultFinder, describe_fault


class Scorer:
    """A loaded model, ready for packed rows.

    Attributes:
        replica: the ranks that this one works with.
        row_tokens: tokens of a full row: `--micro-batch-size` x `--seq-length`.
        num_stages: pipeline stages that a pass fills and drains.
        num_flops: this rank's share of the floating point operations so far, by `ModelShape`.
        num_fed_tokens: tokens in the rows of this lane so far, padding left out.
        sums_type: what becomes of the predictions of a block.
    """

    sums_type: type[BlockSums] = BlockSums

    def __init__(
        self, args: argparse.Namespace, chunks: list[Any], vocab_size: int, rules: ScoringRules, pool: Pool
    ) -> None:
        """Take over a model from `mcore.models.load_for_scoring`.

        Args:
            args: Megatron's.
            chunks: the model chunks of this rank; several with virtual pipeline stages.
            vocab_size: rows of the output matrix that are no padding.
            rules: how sequences meet the model.
            pool: the sequences.

        Raises:
            InputError: a layout or a model that scoring does not support.
        """
        if args.context_parallel_size != 1:
            raise InputError(
                f"--context-parallel-size {args.context_parallel_size} is of no use to scoring, which never needs more "
                "than one row at a time: use tensor parallelism with --sequence-parallel for long contexts"
            )
        self.row_tokens = args.micro_batch_size * args.seq_length
        multiple = ROW_MULTIPLE if self.row_tokens > ROW_MULTIPLE else self.row_tokens
        if args.sequence_parallel and (multiple % args.tensor_model_parallel_size or self.row_tokens % multiple):
            raise InputError(
                f"--micro-batch-size x --seq-length is {self.row_tokens}: with --sequence-parallel it must be a "
                f"multiple of {ROW_MULTIPLE}, and that of --tensor-model-parallel-size"
            )
        self.replica = Replica.of_this_rank()
        self.num_stages = args.pipeline_model_parallel_size
        self.num_flops = 0.0
        self.num_fed_tokens = 0
        self._shape = ModelShape.from_megatron_args(args, vocab_size)
        self._ranks_per_lane = args.tensor_model_parallel_size * self.num_stages
        self._chunks = chunks
        self._vocab_size = vocab_size
        self._rules = rules
        self._pool = pool
        self._config = get_model_config(chunks[0])
        self._own_attention = use_packed_attention(args, chunks)
        self._output_weight_VH = take_output_weight(chunks[-1]) if self.replica.is_last_stage else None
        self._collector: Collector | None = None
        self._pin = next(chunks[0].parameters()).is_cuda
        # Else stages would have to exchange shapes before rows, and experts would get unequal rows from the lanes.
        self._shape_is_fixed = self.num_stages > 1 or self.replica.num_lanes > 1

    def plan(self, sequences: range, chosen_N: Any = None) -> BlockRows:
        """How a block will be fed; depends on the block, the rules and `row_tokens` alone."""
        return plan_block(self._pool, sequences, self._rules, row_tokens=self.row_tokens, chosen_N=chosen_N)

    def score(
        self, blocks: Sequence[BlockRows], on_block: Callable[[int, BlockSums], None], *, on_row: Callable[[], None]
    ) -> None:
        """Score blocks in one pass through the pipeline; a collective call of the replica.

        Args:
            blocks: from `plan`, the same on every rank of the replica.
            on_block: called on the collecting rank of each lane, in another thread, with the position of a finished
                block in `blocks` and this lane's sums.
            on_row: called on every rank after each row.
        """
        lane, num_lanes = self.replica.lane, self.replica.num_lanes
        is_collector = self.replica.is_collector
        collector = None
        if is_collector:
            collector = Collector(on_block, blocks, lane=lane, num_lanes=num_lanes, sums_type=self.sums_type)
        with collector or contextlib.nullcontext():
            self._run(self._host_rows(blocks), self._num_rows(blocks), collector, on_row)

    def forward(self, row: HostRow, model: Any) -> torch.Tensor:
        """Hidden states of one row, as this stage hands them on."""
        tokens_S, positions_S = (part.cuda(non_blocking=True) for part in (row.tokens_S, row.positions_S))
        params = packing_parameters(
            row.boundaries,
            positions_S,
            context_tokens=self._rules.context_tokens,
            own_attention=self._own_attention,
        )
        return model(tokens_S.unsqueeze(0), positions_S.unsqueeze(0), None, packed_seq_params=params)

    def find_fault(self, block: BlockRows, position: int) -> str:
        """Score one sequence alone and say where the first value that is not finite comes from; a collective call.

        Args:
            block: from `plan`.
            position: of the sequence in the block.
        """
        rows = [np.array([window]) for window in np.flatnonzero(block.windows.sequence_W == position)]
        alone = BlockRows(sequences=block.sequences, windows=block.windows, rows=rows)
        host_rows = (
            HostRow(row, 0, pin=self._pin)
            for row in read_rows(self._pool, alone, self._rules, row_tokens=self.row_tokens, trim=False)
        )
        with FaultFinder(self._chunks) as finder:
            padded = itertools.chain(host_rows, itertools.repeat(self._padding()))
            self._run(padded, self._whole_groups(len(rows)), None, lambda: None)
        # Layers count from 1 and the embedding is 0: the smallest of all ranks, by way of the largest.
        first = self._config.num_layers + 1 - self.replica.agree_max(self._config.num_layers + 1 - finder.first_layer)
        return describe_fault(first, self._config.num_layers)

    def _num_rows(self, blocks: Sequence[BlockRows]) -> int:
        """Rows of each lane, equally many on all, in a number that the schedule takes."""
        lanes = self.replica.num_lanes
        return self._whole_groups(sum(-(-len(block.rows) // lanes) for block in blocks))

    def _whole_groups(self, num_rows: int) -> int:
        """With virtual stages a number that schedules.py:1146 takes: the last group of micro-batches must be whole."""
        return num_rows if len(self._chunks) == 1 else -(-num_rows // self.num_stages) * self.num_stages

    def _run(
        self, rows: Iterator[HostRow], num_rows: int, collector: Collector | None, on_row: Callable[[], None]
    ) -> None:
        """One pass of Megatron's schedule."""
        if num_rows == 0:
            return
        self._collector, self._on_row = collector, on_row
        ahead = ReadAhead(rows)
        iterators = list(itertools.tee(ahead, len(self._chunks)))
        try:
            with torch.inference_mode():
                self._schedule(iterators, num_rows)
        finally:
            ahead.close()

    def _schedule(self, iterators: list[Iterator[HostRow]], num_rows: int) -> None:
        get_forward_backward_func()(
            forward_step_func=self._forward_step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=self._chunks if len(self._chunks) > 1 else self._chunks[0],
            num_microbatches=num_rows,
            seq_length=self.row_tokens,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )

    def _host_rows(self, blocks: Sequence[BlockRows]) -> Iterator[HostRow]:
        """This lane's rows, then padding for as long as anyone asks."""
        lane, lanes = self.replica.lane, self.replica.num_lanes
        for position, block in enumerate(blocks):
            mine = BlockRows(sequences=block.sequences, windows=block.windows, rows=block.rows[lane::lanes])
            trim = not self._shape_is_fixed
            for row in read_rows(self._pool, mine, self._rules, row_tokens=self.row_tokens, trim=trim):
                yield HostRow(row, position, pin=self._pin)
            if len(mine.rows) < -(-len(block.rows) // lanes):
                yield self._padding()
        while True:
            yield self._padding()

    def _padding(self) -> HostRow:
        return HostRow(empty_row(self.row_tokens, self._rules.context_tokens), -1, pin=self._pin)

    def _forward_step(self, rows: Iterator[HostRow], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        row = next(rows)
        output = self.forward(row, model)
        if model is self._chunks[0]:
            lengths = np.diff(row.boundaries[: row.num_windows + 1])
            self.num_flops += self._shape.forward_flops(lengths.tolist()) / self._ranks_per_lane
            self.num_fed_tokens += int(lengths.sum())
            self._on_row()
        return output, partial(self._reduce, row)

    def _reduce(self, row: HostRow, hidden_S1H: torch.Tensor, non_loss_data: bool = True) -> None:
        """Token NLLs of one row; runs on the last stage."""
        output_weight_VH = self._output_weight_VH
        assert output_weight_VH is not None  # only the last stage is asked to reduce
        if self._config.sequence_parallel:
            hidden_S1H = gather_from_sequence_parallel_region(hidden_S1H)
        scored_K, targets_K = (part.cuda(non_blocking=True) for part in (row.scored_K, row.targets_K))
        values_K = self._measure(
            hidden_S1H.squeeze(1)[scored_K].to(output_weight_VH.dtype),
            output_weight_VH,
            targets_K,
            first_row=mpu.get_tensor_model_parallel_rank() * len(output_weight_VH),
            vocab_size=self._vocab_size,
            group=mpu.get_tensor_model_parallel_group(),
        )
        if self._collector is not None:
            self._collector.put(row, values_K)

    def _measure(self, hidden_KH: torch.Tensor, weight_VH: torch.Tensor, target_K: torch.Tensor, **rest: Any) -> Any:
        """What `sums_type` adds up of each prediction that counts; the arguments are those of `token_nll`."""
        return token_nll(hidden_KH, weight_VH, target_K, **rest)
