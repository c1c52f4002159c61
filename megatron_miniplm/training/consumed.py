"""Which samples a training step has read, from the flags of the run: no GPU, no checkpoint, no log."""

import argparse
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from megatron.core import num_microbatches_calculator as calculator

from megatron_miniplm.errors import InputError
from megatron_miniplm.training.dataset import parts_of


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one sample has of one sequence.

    Attributes:
        sample: place in the order of consumed samples.
        path: prefix of the blend, as given.
        sequence: of the prefix.
        start_token, num_tokens: of the sequence; the last part of a sample ends with the token that is only a label.
        tokens: (num_tokens,) their ids.
    """

    sample: int
    path: str
    sequence: int
    start_token: int
    num_tokens: int
    tokens: np.ndarray


def samples_of_iteration(args: argparse.Namespace, iteration: int) -> range:
    """Consumed samples of a step, with a batch size that grows, by Megatron's own calculator.

    The order is that of Megatron's sequential sampler (training/datasets/data_samplers.py:82 in megatron-core 0.19.2):
    a step reads the next samples of the data set, and data-parallel ranks share them.

    Args:
        iteration: from 1, as Megatron logs it.

    Raises:
        InputError: the run has no such iteration, or reads in another order.
    """
    if getattr(args, "dataloader_type", None) not in (None, "single"):
        raise InputError(
            f"--dataloader-type {args.dataloader_type} draws samples by the state of a run: the order of single alone "
            "is known beforehand"
        )
    if iteration < 1 or (args.train_iters and iteration > args.train_iters):
        last = f"to {args.train_iters}" if args.train_iters else "on"
        raise InputError(f"--iteration {iteration}: this run has iterations from 1 {last}")
    grows = getattr(args, "step_batch_size_schedule", None) is not None
    if getattr(args, "rampup_batch_size", None) is not None:
        _refuse_ignored_rampup()
        grows = True
    wanted = inspect.signature(calculator.init_num_microbatches_calculator).parameters
    settings = {name: getattr(args, name) for name in wanted if hasattr(args, name)}
    calculator.unset_num_microbatches_calculator()
    calculator.init_num_microbatches_calculator(**{**settings, "rank": 1})  # rank 0 would print
    if not grows:
        consumed = (iteration - 1) * calculator.get_current_global_batch_size()
    else:
        consumed = 0
        for _ in range(iteration - 1):
            calculator.update_num_microbatches(consumed, consistency_check=False)
            consumed += calculator.get_current_global_batch_size()
        calculator.update_num_microbatches(consumed, consistency_check=False)
    return range(consumed, consumed + calculator.get_current_global_batch_size())


def _refuse_ignored_rampup() -> None:
    """Megatron-Core 0.17 grows the batch by --rampup-batch-size; later ones take the flag and ignore it."""
    if hasattr(calculator, "RampupBatchsizeNumMicroBatchesCalculator"):
        return
    import megatron.core

    raise InputError(
        f"--rampup-batch-size: megatron-core {megatron.core.__version__} ignores this flag, 0.17 grows the batch by "
        "it: leave it out if the run was on this version, or run inspect-batch with that of the run"
    )


def parts_of_samples(dataset: Any, samples: range) -> Iterator[Part]:
    """The sequences that some consumed samples were strung together from, in order.

    Args:
        dataset: for training, a `BlendedDataset` or a `GPTDataset`.

    Raises:
        InputError: the data set ends before.
    """
    if samples.stop > len(dataset):
        raise InputError(f"the training data set has {len(dataset):,} samples, the step ends at {samples.stop:,}")
    for sample in samples:
        prefix, position = dataset, sample
        if hasattr(dataset, "dataset_sample_index"):
            if dataset.dataset_index is None:
                dataset[sample]  # loads deferred indices
            prefix = dataset.datasets[int(dataset.dataset_index[sample])]
            position = int(dataset.dataset_sample_index[sample])
        if prefix.shuffle_index is None:
            prefix[position]
        for sequence, start, length in zip(*(array.tolist() for array in parts_of(prefix, position)), strict=True):
            if length:
                tokens = prefix.dataset.get(sequence, offset=start, length=length)
                yield Part(
                    sample=sample,
                    path=prefix.dataset_path,
                    sequence=sequence,
                    start_token=start,
                    num_tokens=length,
                    tokens=np.asarray(tokens),
                )
