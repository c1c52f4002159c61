"""The three datasets of a run, built from its flags by Megatron's own builder.

Imports nothing that Megatron-Core 0.17 lacks, so that inspect-batch works there too.
"""

import argparse
import dataclasses
import json
from functools import partial
from typing import Any

from megatron.core import mpu
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig, MockGPTDataset
from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
from megatron.training import get_args, print_rank_0
from megatron.training.utils import get_blend_and_blend_per_split

from megatron_miniplm.mcore import program

#: Flags whose name differs from the field of `GPTDatasetConfig` that they set.
DATASET_FIELDS = {
    "random_seed": "seed",
    "sequence_length": "seq_length",
    "path_to_cache": "data_cache_path",
    "create_attention_mask": "create_attention_mask_in_dataloader",
    "fast_cache_load": "dataloader_fast_cache_load",
    "defer_npy_index_mmap": "dataloader_defer_npy_index_mmap",
}


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
    from megatron_miniplm.mcore.batches import is_data_needed  # 0.17 has no such batches

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
