"""Full validation in micro-batches, where Megatron's reads one sample at a time.

`--full-validation` has a sampler of its own, whose batches hold a single sample (training/datasets/data_samplers.py:242
in megatron-core 0.19.2). Small models spend most of such a validation outside their matrix products: the quickstart's
took as long as thirty training steps. Sums of losses and token counts are the same for any batches.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

from megatron_miniplm.mcore.patching import Patch


def validate_in_micro_batches(args: argparse.Namespace) -> None:
    """Let `--full-validation` use `--eval-micro-batch-size`.

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
