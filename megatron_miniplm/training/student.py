"""What `megatron.training.pretrain` asks of a GPT program: datasets, a forward step and a loss."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.enums import ModelType
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.core.utils import get_attr_wrapped_model
from megatron.training import get_args, get_timers, inprocess_restart, pretrain, print_rank_0
from megatron.training.argument_utils import pretrain_cfg_container_from_args
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import program
from megatron_miniplm.mcore.batches import is_data_needed, next_batch
from megatron_miniplm.mcore.models import model_provider
from megatron_miniplm.training.validation import validate_in_micro_batches

LossReport = dict[str, torch.Tensor]

#: Flags of Megatron that change what a batch or the loss is, and which only Megatron's own pretrain_gpt.py handles.
REFUSED_FLAGS = ("sft", "fim_data", "dataloader_inter_document_masking", "hybrid_context_parallel", "logits_load_dir")

#: Flags whose name differs from the field of `GPTDatasetConfig` that they set.
DATASET_FIELDS = {
    "random_seed": "seed",
    "sequence_length": "seq_length",
    "path_to_cache": "data_cache_path",
    "create_attention_mask": "create_attention_mask_in_dataloader",
    "fast_cache_load": "dataloader_fast_cache_load",
    "defer_npy_index_mmap": "dataloader_defer_npy_index_mmap",
}


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


def train_valid_test_datasets_provider(num_samples: list[int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Build the three datasets from the blend that `--data-path` and its relatives describe."""
    args = get_args()
    print_rank_0("> building train, validation and test datasets ...")
    with program.megatron_errors("this data"):
        return BlendedMegatronDatasetBuilder(
            MockGPTDataset if args.mock_data else GPTDataset,
            num_samples,
            partial(_is_dataset_built_on_rank, vp_stage),
            dataset_config(args),
        ).build()


def _is_dataset_built_on_rank(vp_stage: int | None) -> bool:
    return mpu.get_tensor_model_parallel_rank() == 0 and is_data_needed(vp_stage)


def dataset_config(args: argparse.Namespace) -> GPTDatasetConfig:
    """`GPTDatasetConfig` from the flags; fields that this Megatron's config lacks are left out."""
    names = {field.name for field in dataclasses.fields(GPTDatasetConfig) if field.init}
    settings = {
        name: getattr(args, DATASET_FIELDS.get(name, name))
        for name in names
        if hasattr(args, DATASET_FIELDS.get(name, name))
    }
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    settings.update(blend=blend, blend_per_split=blend_per_split, tokenizer=build_tokenizer(args))
    settings.pop("sequences_per_dataset", None)
    if args.per_dataset_sequences_path is not None:
        with open(args.per_dataset_sequences_path, encoding="utf-8") as stream:
            settings["sequences_per_dataset"] = json.load(stream)
    return GPTDatasetConfig(**settings)
