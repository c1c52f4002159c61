"""From a data iterator to the tensors of one micro-batch on this rank, over Megatron's own broadcast and CP slicing."""

import inspect
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.utils import get_batch_on_this_cp_rank, get_batch_on_this_tp_rank
from megatron.training import get_args
from megatron.training.utils import is_first_or_last_pipeline_stage

KEYS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")
#: Keys that 0.18 and 0.19 expect in every batch; they stay None for pre-training data.
_PACKING_KEYS = ("cu_seqlens", "cu_seqlens_padded", "max_seqlen", "local_cp_size", "hybrid_cp_group")


def next_batch(data_iterator: Iterator[dict[str, torch.Tensor]] | None, vp_stage: int | None) -> dict[str, Any]:
    """The next micro-batch of pre-training data, broadcast over TP and sliced over CP.

    Args:
        data_iterator: yields `GPTDataset` batches on TP rank 0, None elsewhere.
        vp_stage: virtual pipeline stage of the model chunk.

    Returns:
        `tokens`, `labels`, `position_ids` (B, S) int64, `loss_mask` (B, S) float32 and `attention_mask` (B, 1, S, S)
        bool or None. All are None on stages that need no data, labels and loss mask on a first stage that is not the
        last.
    """
    args = get_args()
    if not is_data_needed(vp_stage):
        return dict.fromkeys(KEYS)
    batch: dict[str, Any] = {}
    if mpu.get_tensor_model_parallel_rank() == 0:
        assert data_iterator is not None
        batch = {key: tensor.cuda(non_blocking=True) for key, tensor in next(data_iterator).items() if key in KEYS}
        batch = {**dict.fromkeys((*KEYS, *_PACKING_KEYS)), **batch}
    batch = get_batch_on_this_tp_rank(
        batch,
        **{_packing_flag(): False},
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=mpu.get_tensor_model_parallel_rank(),
        micro_batch_size=args.micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=bool(args.mtp_num_layers),
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(ignore_virtual=vp_stage is None, vp_stage=vp_stage),
    )
    return get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())


def is_data_needed(vp_stage: int | None) -> bool:
    """Whether this pipeline stage reads tokens or labels; with multi-token prediction every stage may."""
    return is_first_or_last_pipeline_stage(vp_stage) or bool(get_args().mtp_num_layers)


@cache
def _packing_flag() -> str:
    """`has_cu_seqlens` since 0.19, `is_sft` in 0.18: whether batches carry packing metadata. Ours never do."""
    names = inspect.signature(get_batch_on_this_tp_rank).parameters
    return "has_cu_seqlens" if "has_cu_seqlens" in names else "is_sft"
