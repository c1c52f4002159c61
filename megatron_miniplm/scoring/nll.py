"""Token NLLs from hidden states, with the vocabulary spread over tensor-parallel ranks.

Axes: T tokens, H hidden size, V vocabulary rows of this rank.

Megatron's own vocab-parallel cross-entropy sums over padded vocabulary rows too, so that the loss depends on how far
the vocabulary was padded for TP. Here padded rows are cut off before the product. The logits exist only for a slice
of tokens at a time, and the ranks exchange two numbers a token.
"""

import torch
import torch.distributed

#: Logits that may exist at once, in elements, by device. 64 Mi float32 values are 256 MiB of a GPU's memory. On the CPU
#: 1 Mi stay in its cache: 71 ms for 8192 tokens and a vocabulary of 2048, against 123 ms with 16 Mi.
MAX_LOGITS = {"cuda": 1 << 26, "cpu": 1 << 20}
#: Tokens of a slice at the least, whatever the vocabulary: fewer rows make a poor matrix product.
MIN_SLICE_TOKENS = 128


def token_nll(
    hidden_TH: torch.Tensor,
    output_weight_VH: torch.Tensor,
    target_T: torch.Tensor,
    *,
    first_row: int,
    vocab_size: int,
    group: torch.distributed.ProcessGroup | None,
) -> torch.Tensor:
    """Negative log-likelihood of each target in nats.

    Args:
        hidden_TH: final hidden states, in the model's dtype.
        output_weight_VH: this rank's rows of the output matrix.
        target_T: target token ids, int64, below `vocab_size`.
        first_row: vocabulary id of this rank's first row.
        vocab_size: real vocabulary size; rows from here on are padding.
        group: the tensor-parallel group, None for a single rank.

    Returns:
        (T,) float32, the same on every rank of the group.
    """
    num_real_rows = max(0, min(len(output_weight_VH), vocab_size - first_row))
    rows_VH = output_weight_VH[:num_real_rows]
    slice_tokens = max(MIN_SLICE_TOKENS, MAX_LOGITS[hidden_TH.device.type] // max(1, num_real_rows))
    parts = [
        _partial_softmax(hidden_TH[at : at + slice_tokens], rows_VH, target_T[at : at + slice_tokens] - first_row)
        for at in range(0, len(hidden_TH), slice_tokens)
    ]
    log_sum_T, target_logit_T = (torch.cat(column) for column in zip(*parts, strict=True))
    if group is not None and group.size() > 1:
        log_sum_T, target_logit_T = _combine(log_sum_T, target_logit_T, group)
    return log_sum_T - target_logit_T


def _partial_softmax(
    hidden_TH: torch.Tensor, rows_VH: torch.Tensor, local_target_T: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp over this rank's rows, and the target's logit where the target is one of them (else -inf)."""
    missing_T = torch.full(local_target_T.shape, -torch.inf, dtype=torch.float32, device=hidden_TH.device)
    if len(rows_VH) == 0:
        return missing_T, missing_T
    logits_TV = torch.matmul(hidden_TH, rows_VH.t()).float()
    is_local_T = (local_target_T >= 0) & (local_target_T < len(rows_VH))
    picked_T = logits_TV.gather(1, local_target_T.clamp(0, len(rows_VH) - 1).unsqueeze(1)).squeeze(1)
    return torch.logsumexp(logits_TV, dim=1), torch.where(is_local_T, picked_T, missing_T)


def _combine(
    log_sum_T: torch.Tensor, target_logit_T: torch.Tensor, group: torch.distributed.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the ranks' parts: one all-gather of two numbers a token, summed in rank order on every rank."""
    local_2T = torch.stack((log_sum_T, target_logit_T))
    ranks_R2T = [torch.empty_like(local_2T) for _ in range(group.size())]
    torch.distributed.all_gather(ranks_R2T, local_2T, group=group)
    stacked_R2T = torch.stack(ranks_R2T)
    return torch.logsumexp(stacked_R2T[:, 0], dim=0), stacked_R2T[:, 1].amax(dim=0)
