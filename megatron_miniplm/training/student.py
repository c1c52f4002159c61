"""What `megatron.training.pretrain` asks of a GPT program: datasets, a forward step and a loss."""

import argparse
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.enums import ModelType
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, get_timers, inprocess_restart, pretrain
from megatron.training.argument_utils import pretrain_cfg_container_from_args

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import program
from megatron_miniplm.mcore.batches import next_batch
from megatron_miniplm.mcore.models import model_provider
from megatron_miniplm.mcore.versions import Patch
from megatron_miniplm.training.provider import train_valid_test_datasets_provider

LossReport = dict[str, torch.Tensor]

#: Flags of Megatron that change what a batch or the loss is, and which only Megatron's own pretrain_gpt.py handles.
REFUSED_FLAGS = ("sft", "fim_data", "dataloader_inter_document_masking", "hybrid_context_parallel", "logits_load_dir")


def main() -> None:
    """Parse Megatron's flags and train."""
    with program.alike_on_all_ranks():
        args = program.parse(defaults={"tokenizer_type": "GPT2BPETokenizer"})
    refused = [f"--{name.replace('_', '-')}" for name in REFUSED_FLAGS if getattr(args, name, None)]
    if refused:
        raise InputError(f"{', '.join(refused)}: not supported here; use pretrain_gpt.py of a Megatron-LM checkout")
    if getattr(args, "miniplm_dry_run", False):
        from megatron_miniplm.training.dry_run import dry_run

        dry_run(args)
        return
    if args.miniplm_kd_teacher and args.rank == 0:
        from megatron_miniplm.training.teacher import checked_teacher

        checked_teacher(args)  # before the minutes that data and model take
    validate_in_micro_batches(args)
    program.ensure_rendezvous()
    train, store = inprocess_restart.maybe_wrap_for_inprocess_restart(pretrain)
    train_valid_test_datasets_provider.is_distributed = True  # type: ignore[attr-defined]
    # By keyword: the order of these parameters changed between 0.18 and 0.19.
    train(
        pretrain_cfg_container_from_args(args),
        train_valid_test_dataset_provider=train_valid_test_datasets_provider,
        model_provider=model_provider,
        model_type=ModelType.encoder_or_decoder,
        forward_step_func=forward_step,
        store=store,
    )


def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> tuple[torch.Tensor, Callable[..., Any]]:
    """One micro-batch through this rank's model chunk.

    Returns:
        The token losses (B, S) on the last stage, hidden states elsewhere; and the function that reduces the losses.
    """
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch = next_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    return output, partial(loss_func, batch["loss_mask"])


def loss_func(loss_mask: torch.Tensor, token_losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, LossReport]:
    """Sum of the unmasked token losses, in Megatron's three-part form.

    Args:
        loss_mask: (B, S), 1 where a token counts.
        token_losses: (B, S) in nats.

    Returns:
        The loss sum (nats, float32, with gradient), the number of tokens (int32), and what is logged: both, detached.
    """
    mask = loss_mask.reshape(-1).float()
    loss = torch.sum(token_losses.reshape(-1).float() * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    if get_args().check_for_nan_in_loss_and_grad:
        for rejects, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=rejects,
                message=f"found {name} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    report = torch.cat([loss.detach().reshape(1), num_tokens.reshape(1)])
    return loss, num_tokens, {"lm loss": report}


def validate_in_micro_batches(args: argparse.Namespace) -> None:
    """Let `--full-validation` use `--eval-micro-batch-size`.

    Its sampler's batches hold one sample each (training/datasets/data_samplers.py:242 in megatron-core 0.19.2). Small
    models spend most of such a validation outside their matrix products: the quickstart's took as long as thirty
    training steps. Sums of losses and token counts are the same for any batches.

    Nothing changes with tensor or pipeline parallelism: there, ranks expect whole micro-batches, and the last one may
    be smaller.
    """
    if args.full_validation and args.tensor_model_parallel_size == args.pipeline_model_parallel_size == 1:
        Patch(
            "megatron.training.datasets.data_samplers:MegatronFullValidationSampler",
            lambda original: _in_batches(original, args.eval_micro_batch_size),
            "full validation: training/datasets/data_samplers.py:44, which reads one sample at a time",
            ("total_samples", "data_parallel_rank", "data_parallel_size"),
        ).apply()


def batch_size(num_samples: int, *, num_ranks: int, at_most: int) -> int:
    """The largest number of samples per batch that gives all data-parallel ranks equally many batches.

    Megatron lets a rank that runs out of batches start over, and would count those samples twice. Where no size avoids
    that, the result is 1, as in Megatron.

    Args:
        num_samples: of the validation set; rank r has samples r, r + num_ranks, ...
        num_ranks: data-parallel ranks.
        at_most: the micro-batch size.
    """
    fewest, most = num_samples // num_ranks, -(-num_samples // num_ranks)
    return next((size for size in range(at_most, 1, -1) if -(-fewest // size) == -(-most // size)), 1)


def _in_batches(sampler: Any, micro_batch_size: int) -> Any:
    class MicroBatchSampler(sampler):
        def __init__(self, total_samples: int, data_parallel_rank: int, data_parallel_size: int) -> None:
            super().__init__(total_samples, data_parallel_rank, data_parallel_size)
            self.micro_batch_size = batch_size(total_samples, num_ranks=data_parallel_size, at_most=micro_batch_size)

        def __len__(self) -> int:
            return -(-super().__len__() // self.micro_batch_size)

        def __iter__(self) -> Iterator[list[int]]:
            samples = (sample for batch in super().__iter__() for sample in batch)
            return map(list, itertools.batched(samples, self.micro_batch_size))

    return MicroBatchSampler
