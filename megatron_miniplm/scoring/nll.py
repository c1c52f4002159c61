"""Token NLLs from hidden states, with the vocabulary spread over tensor-parallel ranks.

Axes: T tokens, H hidden size, V vocabulary rows of this rank.

Megatron's own vocab-parallel cross-entropy sums over padded vocabulary rows too, so that the loss depends on how far
the vocabulary was padded for TP. Here padded rows are cut off before the product. Logits exist only for a tile of
tokens x vocabulary rows at a time, whatever the sizes of both, and the ranks exchange two numbers a token.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
import torch.distributed


class Tile(NamedTuple):
    """Size of the logits that exist at once.

    On 2 CPU cores, hidden size 512, 32,000 rows: a tile of 2048 x 4096 takes as long as the bare matrix product (0.77 s
    for 4,096 tokens); whole rows of logits with `torch.logsumexp` take 1.13 s. A GPU wants fewer and larger kernels:
    256 MiB of float32.
    """

    tokens: int
    rows: int


TILES = {"cpu": Tile(2048, 4096), "cuda": Tile(4096, 16384)}


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
        (T,) float32, the same on every rank of the group. Products are those of the model's dtype; everything after
        them is float32.
    """
    log_sum_T, target_logit_T = _of_this_rank(hidden_TH, output_weight_VH, target_T, first_row, vocab_size)
    if group is not None and group.size() > 1:
        log_sum_T, target_logit_T = _combine(log_sum_T, target_logit_T, group)
    return log_sum_T - target_logit_T


def token_nll_and_argmax(
    hidden_TH: torch.Tensor,
    output_weight_VH: torch.Tensor,
    target_T: torch.Tensor,
    *,
    first_row: int,
    vocab_size: int,
    group: torch.distributed.ProcessGroup | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`token_nll`, and the likeliest token in the place of each target.

    Costs one more pass over each tile of logits, and two more numbers a token between the ranks.

    Returns:
        (T,) float32, equal to `token_nll` to the bit, and (T,) int64 ids below `vocab_size`, of equally likely tokens
        the first, as `torch.argmax` has it. Both are the same on every rank of the group.
    """
    best = _Best(hidden_TH)
    log_sum_T, target_logit_T = _of_this_rank(hidden_TH, output_weight_VH, target_T, first_row, vocab_size, best)
    best_id_T = first_row + best.row_T
    if group is not None and group.size() > 1:
        log_sum_T, target_logit_T = _combine(log_sum_T, target_logit_T, group)
        best_id_T = _first_of_largest(best.logit_T, best_id_T, group)
    return log_sum_T - target_logit_T, best_id_T


class _Best:
    """The largest logit of each token over the rows seen so far, and its row."""

    def __init__(self, hidden_TH: torch.Tensor) -> None:
        num_tokens, device = len(hidden_TH), hidden_TH.device
        self.logit_T = torch.full((num_tokens,), -torch.inf, dtype=torch.float32, device=device)
        self.row_T = torch.zeros(num_tokens, dtype=torch.int64, device=device)

    def see(self, logits_TV: torch.Tensor, first_token: int, first_row: int) -> None:
        tokens = slice(first_token, first_token + len(logits_TV))
        logit_T, row_T = logits_TV.max(dim=1)
        is_larger_T = logit_T > self.logit_T[tokens]
        self.logit_T[tokens] = torch.where(is_larger_T, logit_T, self.logit_T[tokens])
        self.row_T[tokens] = torch.where(is_larger_T, first_row + row_T, self.row_T[tokens])


def _of_this_rank(
    hidden_TH: torch.Tensor,
    output_weight_VH: torch.Tensor,
    target_T: torch.Tensor,
    first_row: int,
    vocab_size: int,
    best: _Best | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-sum-exp over this rank's real rows, and the target's logit if it is one of them; `best` sees every tile."""
    num_real_rows = max(0, min(len(output_weight_VH), vocab_size - first_row))
    rows_VH = output_weight_VH[:num_real_rows]
    tokens = TILES[hidden_TH.device.type].tokens
    log_sum_T = torch.cat(
        [
            _log_sum_exp(
                hidden_TH[at : at + tokens], rows_VH, None if best is None else partial(best.see, first_token=at)
            )
            for at in range(0, len(hidden_TH), tokens)
        ]
        or [hidden_TH.new_empty(0, dtype=torch.float32)]
    )
    return log_sum_T, _target_logits(hidden_TH, rows_VH, target_T - first_row)


def _log_sum_exp(
    hidden_TH: torch.Tensor, rows_VH: torch.Tensor, see: Callable[..., None] | None = None
) -> torch.Tensor:
    """Log-sum-exp over the rows, tile by tile, keeping the maximum and the sum of exponentials relative to it."""
    max_T1 = torch.full((len(hidden_TH), 1), -torch.inf, dtype=torch.float32, device=hidden_TH.device)
    sum_T1 = torch.zeros_like(max_T1)
    step = TILES[hidden_TH.device.type].rows
    reduce = _tile_reduction(hidden_TH.device.type)
    for at in range(0, len(rows_VH), step):
        logits_TV = _logits(hidden_TH, rows_VH[at : at + step])
        if see is not None:
            see(logits_TV, first_row=at)  # before it is reduced, which may be in place
        max_T1, sum_T1 = reduce(logits_TV, max_T1, sum_T1)
        del logits_TV  # or the next tile would exist beside it
    return (max_T1 + sum_T1.log()).squeeze(1)


def _logits(hidden_TH: torch.Tensor, rows_VH: torch.Tensor) -> torch.Tensor:
    """The product in float32; a GPU's matrix units add up in float32 anyway, so there nothing is rounded between."""
    if hidden_TH.is_cuda and hidden_TH.dtype != torch.float32 and _has_out_dtype():
        return torch.mm(hidden_TH, rows_VH.t(), out_dtype=torch.float32)
    return torch.mm(hidden_TH, rows_VH.t()).float()


def _reduce_tile(
    logits_TV: torch.Tensor, max_T1: torch.Tensor, sum_T1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    new_max_T1 = torch.maximum(max_T1, logits_TV.amax(dim=1, keepdim=True))
    tile_sum_T1 = (logits_TV - new_max_T1).exp().sum(dim=1, keepdim=True)
    return new_max_T1, sum_T1 * (max_T1 - new_max_T1).exp() + tile_sum_T1


def _reduce_tile_in_place(
    logits_TV: torch.Tensor, max_T1: torch.Tensor, sum_T1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in the tile's own memory, for a device where a pass over memory is what costs."""
    new_max_T1 = torch.maximum(max_T1, logits_TV.amax(dim=1, keepdim=True))
    tile_sum_T1 = logits_TV.sub_(new_max_T1).exp_().sum(dim=1, keepdim=True)
    return new_max_T1, sum_T1 * (max_T1 - new_max_T1).exp() + tile_sum_T1


@cache
def _tile_reduction(device_type: str):  # type: ignore[no-untyped-def]
    """On a GPU compiled into two passes over the tile, as Megatron's own elementwise functions are compiled."""
    return _reduce_tile_in_place if device_type == "cpu" else torch.compile(_reduce_tile, dynamic=True)


@cache
def _has_out_dtype() -> bool:
    """Whether `torch.mm` can return float32 for bfloat16 operands (torch 2.8 and later, CUDA only)."""
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 8)


def _target_logits(hidden_TH: torch.Tensor, rows_VH: torch.Tensor, local_target_T: torch.Tensor) -> torch.Tensor:
    """The target's logit in float32 where the target is one of this rank's rows, else -inf."""
    missing_T = torch.full(local_target_T.shape, -torch.inf, dtype=torch.float32, device=hidden_TH.device)
    if len(rows_VH) == 0:
        return missing_T
    is_local_T = (local_target_T >= 0) & (local_target_T < len(rows_VH))
    target_rows_TH = rows_VH[local_target_T.clamp(0, len(rows_VH) - 1)]
    return torch.where(is_local_T, (hidden_TH.float() * target_rows_TH.float()).sum(dim=1), missing_T)


def _combine(
    log_sum_T: torch.Tensor, target_logit_T: torch.Tensor, group: torch.distributed.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join the ranks' parts: one all-gather of two numbers a token, summed in rank order on every rank."""
    stacked_R2T = _gather(torch.stack((log_sum_T, target_logit_T)), group)
    return torch.logsumexp(stacked_R2T[:, 0], dim=0), stacked_R2T[:, 1].amax(dim=0)


def _first_of_largest(logit_T: torch.Tensor, id_T: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """The id that belongs to the largest of the ranks' logits; of equal ones the first rank's, whose ids are lower."""
    logit_RT, id_RT = _gather(logit_T, group), _gather(id_T, group)
    return id_RT.gather(0, logit_RT.argmax(dim=0, keepdim=True)).squeeze(0)


def _gather(local: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """Every rank's tensor, stacked in rank order."""
    ranks = [torch.empty_like(local) for _ in range(group.size())]
    torch.distributed.all_gather(ranks, local, group=group)
    return torch.stack(ranks)
