"""One training step: the script's own forward step and loss, with weights, distillation and statistics around them.

A forward step returns the token losses and a function that reduces them; in Megatron's scripts that is
`partial(loss_func, loss_mask, ...)` (pretrain_gpt.py of 0.17 to 0.20). The weights of sequences travel in the loss
mask, which Megatron broadcasts and slices like the labels:

    dataset   loss_mask = mask x weight                                      (B, S)
    here      losses x loss_mask -> loss_func(loss_mask != 0)                sum and token count as without weights

so that a weight scales a loss and never the number of tokens by which Megatron divides. What is logged goes into the
report of the loss function, which Megatron adds up over micro-batches and data-parallel ranks and hands to its own
writers. Line numbers are those of megatron-core 0.19.2.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from typing import Any

import torch
from megatron.core import mpu

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.training.dataset import STATISTICS, refinement_of_run

#: (B, S) token losses -> those to train on, and further token losses (B, S) to log by name.
TokenLossTerm = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]
Reduced = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]

#: Shares of more prefixes than these are not logged: each is a curve of its own.
MAX_SHARES = 32
_LM_LOSS = "lm loss"
#: What is trained on where that is not the plain loss: with weights, with distillation.
TRAINING_LOSS = "training loss"


def refined_step(forward_step_func: Any, forward_backward_func: Any, model: list[Any]) -> tuple[Any, Any]:
    """The forward step and the schedule of one training step, with what the flags ask for around them."""
    from megatron.training import get_args

    args = get_args()
    _record_once()
    terms: list[TokenLossTerm] = []
    if args.miniplm_kd_teacher:
        from megatron_miniplm.training.distillation import Distillation

        distillation = Distillation.of_run(args, model)
        forward_backward_func = distillation.around(forward_backward_func)
        terms.append(distillation.token_losses)
    refinement = refinement_of_run(args)
    if refinement is not None or terms:
        is_weighted = refinement is not None and refinement.weighting == "loss"
        log = None if refinement is None else _log_of_run()
        forward_step_func = _refined(forward_step_func, terms, is_weighted=is_weighted, log=log)
    return forward_step_func, forward_backward_func


@cache
def _record_once() -> None:
    """Leave what the run is trained and validated on beside its checkpoints and logs; rank 0, at the first step."""
    from megatron.training import get_args

    from megatron_miniplm.training.records import record_run

    if torch.distributed.get_rank() == 0:
        record_run(get_args(), refinement_of_run(get_args()))


@cache
def _log_of_run() -> "Log":
    """What the flags say is to be logged; once, since a blend may be a file."""
    from megatron.training import get_args
    from megatron.training.utils import get_blend_and_blend_per_split

    args = get_args()
    refinement = refinement_of_run(args)
    assert refinement is not None
    blend, per_split = get_blend_and_blend_per_split(args)
    paths, _ = (per_split[0] if per_split else blend) or ([], None)
    names = tuple(os.path.basename(path) for path in paths)
    has_shares = 1 < len(names) <= MAX_SHARES and len(set(names)) == len(names)
    return Log(measure=refinement.measure, groups=names if has_shares else ())


def _refined(forward_step_func: Any, terms: list[TokenLossTerm], *, is_weighted: bool, log: "Log | None") -> Any:
    @wraps(forward_step_func)
    def forward_step(data_iterator: Any, model: Any, *rest: Any, **named: Any) -> Any:
        consumed = None if log is None else Consumed(log)
        if consumed is not None and data_iterator is not None:
            data_iterator = consumed.watch(data_iterator)
        output, loss_func = forward_step_func(data_iterator, model, *rest, **named)
        return output, partial(reduced_loss, loss_func, terms, consumed, is_weighted)

    return forward_step


def reduced_loss(
    loss_func: Any,
    terms: list[TokenLossTerm],
    consumed: "Consumed | None",
    is_weighted: bool,
    token_losses: torch.Tensor,
) -> Reduced:
    """The script's loss over weighted token losses; called on the last pipeline stage.

    Args:
        loss_func: of the script, holding its loss mask.
        terms: what else shapes the token losses.
        consumed: the data behind them; None where no selection is in use.
        is_weighted: whether the loss mask holds weights.
        token_losses: (B, S) in nats.

    Raises:
        UnsupportedMegatronError: the script's loss function does not hold a loss mask.
    """
    if not terms and not is_weighted:
        loss, num_tokens, report = loss_func(token_losses)
    else:
        loss, num_tokens, report = _weighted(loss_func, terms, is_weighted, token_losses)
    if consumed is not None:
        report = {**report, **consumed.report(loss.device)}
    return loss, num_tokens, report


def _weighted(loss_func: Any, terms: list[TokenLossTerm], is_weighted: bool, token_losses: torch.Tensor) -> Reduced:
    weighted_mask = _loss_mask(loss_func, token_losses)
    mask = (weighted_mask != 0).to(weighted_mask.dtype)
    logged: dict[str, torch.Tensor] = {_LM_LOSS: token_losses} if is_weighted else {}
    for term in terms:
        token_losses, named = term(token_losses)
        logged.update(named)
    if is_weighted:
        token_losses = token_losses * weighted_mask.view_as(token_losses)
    loss, num_tokens, report = loss_func.func(mask, *loss_func.args[1:], token_losses, **loss_func.keywords)
    report = {**report, TRAINING_LOSS: report[_LM_LOSS]}
    flat_mask = mask.reshape(-1).float()
    for name, losses in logged.items():
        total = torch.sum(losses.detach().reshape(-1).float() * flat_mask)
        report[name] = torch.stack([total, flat_mask.sum()])
    return loss, num_tokens, report


def _loss_mask(loss_func: Any, token_losses: torch.Tensor) -> torch.Tensor:
    if isinstance(loss_func, partial) and loss_func.args:
        mask = loss_func.args[0]
        if isinstance(mask, torch.Tensor) and mask.is_floating_point() and mask.numel() == token_losses.numel():
            return mask
    raise UnsupportedMegatronError(
        "the forward step of this script returned a loss function that does not begin with the loss mask; expected "
        "partial(loss_func, loss_mask, ...) as Megatron's pretrain_gpt.py returns it, with which loss weights and "
        "distillation work: return it that way, or leave --miniplm-weighting loss and --miniplm-kd-teacher out"
    )


@dataclass(frozen=True, kw_only=True)
class Log:
    """What is logged of the data.

    Attributes:
        measure: name of the mean of what sequences are ranked by.
        groups: names of the prefixes of the blend, in its order; () where their shares are not logged.
    """

    measure: str
    groups: tuple[str, ...]


@dataclass
class Consumed:
    """What one micro-batch was made of.

    Attributes:
        log: what is logged of it.
        sums: (4 + G,) float32: `dataset.CONSUMED`, then tokens of each group; None where this rank reads no data.
    """

    log: Log
    sums: torch.Tensor | None = field(default=None)

    def watch(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, looked at as they pass."""
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            if STATISTICS in batch:
                batch = dict(batch)  # scripts may rely on the keys that Megatron's own data sets have
                statistics = batch.pop(STATISTICS).float()
                tokens = statistics[:, -1]
                by_group = torch.zeros(len(self.log.groups))
                if self.log.groups and "dataset_id" in batch:
                    by_group.index_add_(0, batch["dataset_id"].long().cpu(), tokens.cpu())
                self.sums = torch.cat([statistics.sum(dim=0).cpu(), by_group])
            yield batch

    def report(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Means to log, each as a sum and what it is divided by.

        Tensor-parallel rank 0 reads the data, and the last rank logs: a few numbers are broadcast.
        """
        sums = torch.zeros(4 + len(self.log.groups), device=device)
        if self.sums is not None:
            sums = self.sums.to(device, non_blocking=True)
        if mpu.get_tensor_model_parallel_world_size() > 1:
            source, group = mpu.get_tensor_model_parallel_src_rank(), mpu.get_tensor_model_parallel_group()
            torch.distributed.broadcast(sums, source, group=group)
        _, valued_tokens, weights, tokens = sums[:4].clamp_min(torch.finfo(torch.float32).tiny)
        report = {
            f"miniplm/{self.log.measure}": torch.stack([sums[0], valued_tokens]),
            "miniplm/mean weight": torch.stack([weights, tokens]),
        }
        for name, group_tokens in zip(self.log.groups, sums[4:], strict=True):
            report[f"miniplm/share of {name}"] = torch.stack([group_tokens, tokens])
        return report
