"""`GPTDataset` over what a selection keeps, in the user's own blend.

    builder (Megatron's) ── refined_class ──► DifferenceSampledGPTDataset    one a prefix and split
                         └─ safely_cached ──► SafelyCachedBlendedDataset     over these

Only the training split of a prefix with a selection is refined. Other prefixes, validation and test sets give the
samples that `GPTDataset` gives, so that their losses can be compared with those of any other run. Line numbers are
those of megatron-core 0.19.2.
"""

import copy
import json
import logging
from functools import cache
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets import blended_dataset, helpers
from megatron.core.datasets.blended_dataset import BlendedDataset
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.utils import Split, normalize

from megatron_miniplm.artifacts.data_args import require_listed_prefixes
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.layout import refuse_too_many
from megatron_miniplm.mcore.program import args_of_run, say_once
from megatron_miniplm.training.document_index import (
    IndexSettings,
    NothingToTrainOnError,
    build_indices,
    starts_in_prefix,
)
from megatron_miniplm.training.flags import DRY_RUN_ELSEWHERE
from megatron_miniplm.training.index_cache import DESCRIPTION, IndexCache, cache_directory, is_older
from megatron_miniplm.training.records import check_resumed_run
from megatron_miniplm.training.refinement import RefinedPrefix, Refinement

#: Key of a sample beside Megatron's: (4,) float32, see `CONSUMED`.
STATISTICS = "miniplm_statistics"
#: What `STATISTICS` holds: sum of value x tokens and tokens, over tokens with a value; sum of weight x tokens, tokens.
CONSUMED = ("value_sum", "valued_tokens", "weight_sum", "tokens")


def refined_class(cls: Any, config: Any) -> Any:
    """The dataset class that a builder should use, given the one that the script names.

    Raises:
        InputError: there is a selection, and the class or the configuration is one that cannot be refined.
    """
    args = args_of_run()
    if getattr(args, "miniplm_dry_run", False):
        raise InputError(DRY_RUN_ELSEWHERE)
    refinement = refinement_of_run(args)
    if args is not None:
        check_resumed_run(args, refinement)
        if data_args := getattr(args, "data_args_path", None):
            require_listed_prefixes(Path(data_args))
    if refinement is None:
        _refuse_idle_flags(args)
        return cls
    if cls is not GPTDataset:
        reasons = {
            "MockGPTDataset": "--mock-data reads no corpus",
            "GPTFIMDataset": "--fim-data permutes documents, which the scores say nothing of",
            "SFTDataset": "--sft trains on conversations",
        }
        reason = reasons.get(cls.__name__, f"this script builds {cls.__name__}, expected GPTDataset")
        raise InputError(f"--miniplm-selection refines GPTDataset: {reason}; leave one of the two out")
    if args.miniplm_ratio_schedule and getattr(args, "dataloader_type", None) not in (None, "single"):
        raise InputError(
            f"--miniplm-ratio-schedule follows the order of samples, --dataloader-type {args.dataloader_type} has "
            "another: use single"
        )
    if args.miniplm_weighting == "loss" and getattr(args, "mtp_num_layers", None):
        raise InputError(
            "--miniplm-weighting loss with --mtp-num-layers: Megatron divides the losses of further tokens by the sum "
            "of the loss mask, in which the weights travel; use --miniplm-weighting resample, or leave one of them out"
        )
    _check_blend(refinement, config)
    return DifferenceSampledGPTDataset


def safely_cached(cls: Any) -> Any:
    """The class to build in place of `cls`: blends of refined datasets get caches that are written whole."""
    return SafelyCachedBlendedDataset if cls is BlendedDataset and refinement_of_run(args_of_run()) else cls


def refinement_of_run(args: Any) -> Refinement | None:
    """What the flags ask for, opened once a process; None without a selection."""
    if not getattr(args, "miniplm_selection", None):
        return None
    return _refinement(
        tuple(args.miniplm_selection),
        args.miniplm_weighting,
        args.miniplm_ratio_schedule,
        args.miniplm_temperature_schedule,
    )


def _refuse_idle_flags(args: Any) -> None:
    for flag, idle in (("weighting", "none"), ("ratio_schedule", None), ("temperature_schedule", None)):
        if getattr(args, f"miniplm_{flag}", idle) != idle:
            raise InputError(f"--miniplm-{flag.replace('_', '-')} needs --miniplm-selection DIR")


@cache
def _refinement(
    directories: tuple[str, ...], weighting: str, ratio_schedule: str | None, temperature_schedule: str | None
) -> Refinement:
    return Refinement.open(
        list(directories),
        weighting=weighting,
        ratio_schedule=ratio_schedule,
        temperature_schedule=temperature_schedule,
    )


def _check_blend(refinement: Refinement, config: Any) -> None:
    """Raise InputError unless the blend for training has a prefix of the selections."""
    paths, _ = _training_blend(config)
    if not paths:
        return  # no training split is built
    refined = {path: refinement.of(path) for path in paths}
    for path, found in refined.items():
        say_once(f"miniplm: {path}: " + (found.description() if found else "no selection, left whole"))
    if not any(refined.values()):
        known = ", ".join(str(refined.selected.path) for refined in refinement.prefixes.values())
        raise InputError(
            f"no training prefix of the blend ({', '.join(paths[:5])}) is in the selection, which is of {known}: give "
            "those prefixes, not views of them, to --data-path, or select from these"
        )


def _training_blend(config: Any) -> tuple[list[str], list[float] | None]:
    blend = config.blend_per_split[Split.train.value] if config.blend_per_split else config.blend
    return blend if blend is not None else ([], None)


class DifferenceSampledGPTDataset(GPTDataset):
    """`GPTDataset` that draws what a selection keeps, as often as it says, with the weights that it gives.

    Takes the arguments of `GPTDataset`; the selection is that of the run's flags. Samples have `STATISTICS` in training
    sets, and with `--miniplm-weighting loss` a loss mask that is multiplied by the weights of the labels' sequences.

    Raises:
        FingerprintMismatchError: the prefix is not what was selected from (looked at when indices are built).
        InputError: nothing is kept of the prefix, or the schedule does not fit the blend.
    """

    refined: RefinedPrefix | None

    def _build_document_sample_shuffle_indices(self) -> Any:
        """Build what is missing of the cache, then let Megatron load it."""
        refinement = refinement_of_run(args_of_run())
        assert refinement is not None, "built by `refined_class` only"
        self.refined = refinement.of(self.dataset_path) if self.index_split == Split.train else None
        starts: tuple[int, ...] = (0,)
        if self.refined is not None:
            starts = self._phase_starts(refinement)
            self._identify(self.refined.identity(starts))
        else:
            self._identify(self._size_of_corpus())
        names = ("document_index", "sample_index", "shuffle_index")
        cache = _cache_of(self, cache_directory(self), self.index_split, names)
        if self.refined is not None and is_older(cache.path(DESCRIPTION), Path(f"{self.dataset_path}.idx")):
            self.refined.check_corpus(self.dataset_path, self.numel_low_level_dataset(self.dataset))
        cache.ensure(lambda: dict(zip(names, self._build(starts), strict=True)))
        return super()._build_document_sample_shuffle_indices()

    def _phase_starts(self, refinement: Refinement) -> tuple[int, ...]:
        """First sample of each phase of the run in this prefix, as far as the samples go."""
        if not refinement.has_schedule:
            return (0,)
        paths, weights = _training_blend(self.config)
        share = 1.0
        if len(paths) > 1:
            if weights is None or self.num_samples is None or paths.count(self.dataset_path) > 1:
                raise InputError(
                    "--miniplm-ratio-schedule needs to know how many samples of each prefix are drawn: give every "
                    "prefix of the blend once, with a weight"
                )
            share = normalize(weights)[paths.index(self.dataset_path)]
        starts = starts_in_prefix(refinement.phases, share)
        return tuple(start for start in starts if start == 0 or self.num_samples is None or start < self.num_samples)

    def _identify(self, identity: dict[str, Any]) -> None:
        """Put what the selection decides into the key of the cache, which Megatron makes of paths and flags alone."""
        self.unique_identifiers["miniplm"] = identity
        self.unique_description = json.dumps(
            self.unique_identifiers, indent=4, default=lambda value: value.unique_identifiers
        )
        self.unique_description_hash = md5(self.unique_description.encode(), usedforsecurity=False).hexdigest()

    def _size_of_corpus(self) -> dict[str, int]:
        """What tells a corpus from another of its name without reading it."""
        lengths, pointers = self.dataset.sequence_lengths, self.dataset.index.sequence_pointers
        last = (int(pointers[-1]), int(lengths[-1])) if len(lengths) else (0, 0)
        return {"num_sequences": len(lengths), "last_pointer": last[0], "last_length": last[1]}

    def _build(self, starts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        refined, path = self.refined, self.dataset_path
        num_sequences = self.numel_low_level_dataset(self.dataset)
        refuse_too_many(path, num_sequences)
        first, stop = self._range(num_sequences)
        if refined is not None:
            refined.check_corpus(path, num_sequences)
        seed = self.config.random_seed

        def epoch_of(phase: int, epoch: int) -> np.ndarray:
            if refined is None:
                return np.arange(first, stop, dtype=np.int32)
            return refined.epoch(first, stop, phase=phase, epoch=epoch, seed=seed)

        settings = IndexSettings(
            sequence_length=self.config.sequence_length,
            extra_tokens=int(self.config.add_extra_token_to_sequence),
            num_samples=self.num_samples,
            seed=seed,
            drops_last=self.index_split != Split.valid or self.config.drop_last_partial_validation_sequence,
            phase_starts=starts,
            epochs_differ=refined is not None and refined.weighting == "resample",
        )
        try:
            return build_indices(epoch_of, self.dataset.sequence_lengths, settings, helpers.build_sample_idx)
        except NothingToTrainOnError:
            what = "kept by the selection" if refined is not None else "there"
            raise InputError(
                f"{path} has no token {what} among its sequences {first} to {stop} ({self.index_split.name}): take it "
                "out of the blend, or give this split more"
            ) from None

    def _range(self, num_sequences: int) -> tuple[int, int]:
        """The sequences of this split, as the builder cuts them (blended_megatron_dataset_builder.py:433)."""
        if self.indices is not None:
            return (int(self.indices[0]), int(self.indices[-1]) + 1) if len(self.indices) else (0, 0)
        return 0, num_sequences  # --dataloader-fast-cache-load leaves them out, and allows whole prefixes only

    def __len__(self) -> int:
        """Number of samples; with `--dataloader-defer-npy-index-mmap`, of which only the header of a file is read."""
        if self.sample_index is not None:
            return len(self.sample_index) - 1
        return len(np.load(self.path_to_sample_index, mmap_mode="r")) - 1

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        sample: dict[str, torch.Tensor] = super().__getitem__(idx)
        if self.index_split != Split.train:
            return sample
        length = self.config.sequence_length
        statistics = np.array((0, 0, length, length) if idx is not None else (0, 0, 0, 0), np.float32)
        if self.refined is not None and idx is not None:
            sequences, labels = self._labels_of(idx)
            values, weights = self.refined.look_up(sequences)
            statistics[:] = _statistics(values, weights, labels)
            if self.refined.weighting == "loss":
                by_label = np.ones(length, np.float32)
                by_label[: labels.sum()] = np.repeat(self.refined.loss_weights(weights), labels)
                sample["loss_mask"] = sample["loss_mask"] * torch.from_numpy(by_label)  # Megatron keeps the original
        sample[STATISTICS] = torch.from_numpy(statistics)
        return sample

    def _labels_of(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences of a sample and how many of its labels, in order, each of them has."""
        sequences, _, lengths = parts_of(self, idx)
        lengths[np.argmax(lengths > 0)] -= 1  # the first token is no label; sequences may be empty
        return sequences, lengths


def parts_of(dataset: GPTDataset, idx: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a sample is strung together from.

    Args:
        dataset: its indices are loaded (with deferred ones, after the first sample was read).

    Returns:
        Sequences (K,), the first token of each that the sample has (K,), and how many it has (K,), all int64; with the
        extra token for the labels.
    """
    row = dataset.shuffle_index[idx]
    (first, start), (last, stop) = dataset.sample_index[row].tolist(), dataset.sample_index[row + 1].tolist()
    sequences = np.asarray(dataset.document_index[first : last + 1], np.int64)
    starts = np.zeros(len(sequences), np.int64)
    lengths = dataset.dataset.sequence_lengths[sequences].astype(np.int64)
    lengths[-1] = stop + int(dataset.config.add_extra_token_to_sequence)
    starts[0] = start
    lengths[0] -= start
    return sequences, starts, lengths


def _statistics(values: np.ndarray, weights: np.ndarray, labels: np.ndarray) -> tuple[float, ...]:
    """`CONSUMED` of one sample."""
    has_value = np.isfinite(values)
    return (
        np.dot(np.where(has_value, values, 0.0), labels),
        np.dot(has_value, labels),
        np.dot(weights, labels),
        labels.sum(),
    )


class SafelyCachedBlendedDataset(BlendedDataset):
    """`BlendedDataset` whose cache is written whole, and where it is missing: on any rank, on any node."""

    config: Any

    def _build_indices(self) -> Any:
        if self.config.path_to_cache:
            names = ("dataset_index", "dataset_sample_index")
            _cache_of(self, Path(self.config.path_to_cache), self.split, names).ensure(
                lambda: dict(zip(names, self._build(), strict=True))
            )
        return super()._build_indices()

    def _build(self) -> tuple[np.ndarray, np.ndarray]:
        """Megatron's own arrays; without a path for the cache every rank builds them and none writes."""
        config = self.config
        self.config = copy.copy(config)
        self.config.path_to_cache = None
        self.config.fast_cache_load = self.config.defer_npy_index_mmap = False
        level = blended_dataset.logger.level
        blended_dataset.logger.setLevel(logging.ERROR)  # it warns that nothing is saved
        try:
            return super()._build_indices()
        finally:
            self.config = config
            blended_dataset.logger.setLevel(level)


def _cache_of(dataset: Any, directory: Path, split: Split, names: tuple[str, ...]) -> IndexCache:
    """The cache under the names that Megatron has for it."""
    return IndexCache(
        directory=directory,
        stem=f"{dataset.unique_description_hash}-{type(dataset).__name__}-{split.name}",
        description=dataset.unique_description,
        names=names,
        is_trusted=dataset.config.fast_cache_load,
    )
