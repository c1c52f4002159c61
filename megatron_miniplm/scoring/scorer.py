"""A model on Megatron's forward-only schedule that turns blocks of sequences into NLL sums.

Every rank of a replica (TP x PP) walks through the same micro-batches, which it reads from the mapped corpus itself;
the last pipeline stage turns hidden states into token NLLs.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.utils import get_model_config

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.models import take_output_weight
from megatron_miniplm.scoring.batching import LENGTH_MULTIPLE, MicroBatch, group_by_length, micro_batches
from megatron_miniplm.scoring.nll import token_nll
from megatron_miniplm.scoring.pool import Pool
from megatron_miniplm.scoring.windows import cut_windows


class Scorer:
    """A loaded model that turns blocks of sequences into NLL sums and token counts."""

    def __init__(self, args: argparse.Namespace, chunks: list[Any], vocab_size: int) -> None:
        """Take over a model from `mcore.models.load_for_scoring`.

        Args:
            args: Megatron's, with `seq_length` (context), `micro_batch_size` and `miniplm_window_overlap`.
            chunks: the model chunks of this rank; exactly one.
            vocab_size: of the tokenizer, without padding.

        Raises:
            InputError: a layout that scoring does not support.
        """
        if len(chunks) != 1 or args.context_parallel_size != 1 or args.expert_model_parallel_size != 1:
            # Replicas walk through different numbers of micro-batches, experts spread over them could not follow.
            raise InputError("scoring runs with TP x PP x DP: virtual pipeline stages, CP and EP must be off")
        self.model = chunks[0]
        self.vocab_size = vocab_size
        self.context_tokens = args.seq_length
        self.overlap_tokens = args.miniplm_window_overlap
        self.max_tokens = args.micro_batch_size * args.seq_length
        self.is_last_stage = mpu.is_pipeline_last_stage()
        self._config = get_model_config(self.model)
        self._config.variable_seq_lengths = True  # micro-batches differ in shape
        if self._config.sequence_parallel and LENGTH_MULTIPLE % mpu.get_tensor_model_parallel_world_size():
            raise InputError(f"--sequence-parallel scoring needs a TP size that divides {LENGTH_MULTIPLE}")
        self._output_weight_VH = take_output_weight(self.model) if self.is_last_stage else None

    def score(self, pool: Pool, sequences: range) -> tuple[np.ndarray, np.ndarray]:
        """Score a run of sequences.

        Returns:
            NLL sums in nats, float64, and numbers of scored tokens, int64, a sequence each. On pipeline stages other
            than the last the sums are zeros.
        """
        windows = cut_windows(
            pool.lengths(sequences), context_tokens=self.context_tokens, overlap_tokens=self.overlap_tokens
        )
        groups = list(group_by_length(windows.num_inputs_W, max_tokens=self.max_tokens))
        nll_N = np.zeros(len(sequences))
        num_tokens_N = np.zeros(len(sequences), np.int64)
        np.add.at(num_tokens_N, windows.sequence_W, windows.num_inputs_W - windows.num_context_W)
        if groups:
            with torch.no_grad():
                results = get_forward_backward_func()(
                    forward_step_func=self._forward_step,
                    data_iterator=micro_batches(pool, sequences, windows, groups),
                    model=self.model,
                    num_microbatches=len(groups),
                    seq_length=self.context_tokens,
                    micro_batch_size=self.max_tokens // self.context_tokens,
                    forward_only=True,
                    collect_non_loss_data=True,
                )
            for windows_B, nll_B in results:
                np.add.at(nll_N, windows.sequence_W[windows_B], nll_B)
        return nll_N, num_tokens_N

    def _forward_step(self, batches: Iterator[MicroBatch], model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
        batch = next(batches)
        tokens_BS = torch.from_numpy(batch.tokens_BS).cuda(non_blocking=True)
        positions_BS = torch.arange(tokens_BS.shape[1], device=tokens_BS.device).expand_as(tokens_BS)
        return model(tokens_BS, positions_BS, None), partial(self._reduce, batch)

    def _reduce(self, batch: MicroBatch, hidden_SBH: torch.Tensor, non_loss_data: bool = True) -> Any:
        """Row sums of the NLL of one micro-batch, with the positions of the rows; runs on the last stage."""
        output_weight_VH = self._output_weight_VH
        assert output_weight_VH is not None  # only the last stage is asked to reduce
        if self._config.sequence_parallel:
            hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH)
        scored_BS = torch.from_numpy(batch.scored_BS).to(hidden_SBH.device)
        targets_BS = torch.from_numpy(batch.targets_BS).to(hidden_SBH.device)
        nll_T = token_nll(
            hidden_SBH.transpose(0, 1)[scored_BS].to(output_weight_VH.dtype),
            output_weight_VH,
            targets_BS[scored_BS],
            first_row=mpu.get_tensor_model_parallel_rank() * len(output_weight_VH),
            vocab_size=self.vocab_size,
            group=mpu.get_tensor_model_parallel_group(),
        )
        nll_BS = torch.zeros(scored_BS.shape, dtype=torch.float64, device=nll_T.device)
        nll_BS[scored_BS] = nll_T.double()
        return batch.windows_B, nll_BS.sum(dim=1).cpu().numpy()
