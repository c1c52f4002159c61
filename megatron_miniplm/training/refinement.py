"""Flags and selections -> which sequences of a prefix are drawn in each epoch, and what they weigh. No torch."""

import os
import threading
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from megatron_miniplm.artifacts.selections import SelectedPrefix, Selection, copies_of
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import refuse_too_many
from megatron_miniplm.runtime.hashing import perturbed
from megatron_miniplm.training.document_index import WHOLE_RUN, Phase, phases_of

OBJECT_STORAGE = ("s3://", "msc://")
_CHUNK_SEQUENCES = 1 << 22
#: `--rank-by` where nothing else was asked for.
_DIFFERENCE = "reference - teacher"
#: A weight of 0 in a loss mask would take the token out of the count that the loss is divided by; a much smaller one
#: makes subnormal gradients, with which CPUs are slow.
_LEAST_WEIGHT = np.float32(1e-20)


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What a run does with its selections.

    Attributes:
        prefixes: by key (see `key_of`).
        weighting: `none`, `resample` or `loss`.
        phases: of the run.
    """

    prefixes: dict[str, "RefinedPrefix"]
    weighting: str
    phases: tuple[Phase, ...]

    @classmethod
    def open(
        cls,
        directories: list[str],
        *,
        weighting: str = "none",
        ratio_schedule: str | None = None,
        temperature_schedule: str | None = None,
    ) -> Self:
        """Open selections.

        Raises:
            InputError: a directory is no selection, two hold the same prefix, or a schedule does not fit them.
            CorruptArtifactError: a selection is damaged.
        """
        phases = phases_of(ratio_schedule, temperature_schedule)
        prefixes: dict[str, RefinedPrefix] = {}
        for directory in directories:
            pool = Pool(selection=Selection.open(Path(directory)), phases=phases)
            pool.check()
            for selected in pool.selection.prefixes:
                refuse_too_many(selected.path, selected.num_source_sequences)
                refined = RefinedPrefix(pool=pool, selected=selected, weighting=weighting)
                if (twin := prefixes.setdefault(key_of(selected.path), refined)) is not refined:
                    raise InputError(
                        f"{selected.path} is in {twin.pool.selection.directory} and in {directory}: give one of them"
                    )
        return cls(prefixes=prefixes, weighting=weighting, phases=phases)

    def of(self, path: str) -> "RefinedPrefix | None":
        """What is done with a prefix of the blend; None leaves it whole.

        Prefixes are known by their real path; those in object storage, which selections cannot name, by their name.
        """
        if not path.startswith(OBJECT_STORAGE):
            return self.prefixes.get(key_of(path))
        named = [refined for refined in self.prefixes.values() if refined.selected.name == os.path.basename(path)]
        if len(named) > 1:
            raise InputError(f"{path}: the selections hold {len(named)} prefixes of this name; select them apart")
        return named[0] if named else None

    @property
    def measure(self) -> str:
        """Name of the mean of what sequences are ranked by."""
        expressions = {refined.pool.selection.summary["from_scores"] for refined in self.prefixes.values()}
        return "mean difference" if expressions == {_DIFFERENCE} else "mean value"

    @property
    def has_schedule(self) -> bool:
        return self.phases != WHOLE_RUN


def key_of(path: str | Path) -> str:
    """What tells prefixes apart: the real path of their index, so that links to a prefix are the prefix.

    A view is an index of its own over another prefix's data, and is not that prefix.
    """
    return os.path.realpath(f"{path}.idx").removesuffix(".idx")


@dataclass(frozen=True, kw_only=True)
class Pool:
    """A selection whose sequences a schedule chooses from.

    Attributes:
        selection: as opened.
        phases: of the run.
    """

    selection: Selection
    phases: tuple[Phase, ...]
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)
    _thresholds: dict[int, tuple[float, int]] = field(default_factory=dict, repr=False, compare=False)

    def check(self) -> None:
        """Raise InputError where the schedule asks for what the selection does not hold."""
        summary, directory = self.selection.summary, self.selection.directory
        ratios = [phase.ratio for phase in self.phases if phase.ratio is not None]
        if not ratios:
            return
        if summary["per_domain"] or summary["drop_negative"]:
            raise InputError(
                f"{directory} was made with --per-domain or --drop-negative, which a schedule of one ratio would undo: "
                "select without, or leave --miniplm-ratio-schedule out"
            )
        if max(1, int(max(ratios) * summary["num_eligible"])) > summary["num_kept"]:
            held = summary["num_kept"] / max(1, summary["num_eligible"])
            raise InputError(
                f"--miniplm-ratio-schedule asks for {max(ratios)} of the scored sequences, {directory} holds "
                f"{held:.6g}: select again with --ratio {max(ratios)}"
            )

    @cached_property
    def scale(self) -> float:
        """Mean weight of a token of the selection, by which loss weights are divided: uniform ones become 1."""
        num_tokens = sum(prefix.num_tokens for prefix in self.selection.prefixes)
        return sum(prefix.weighted_tokens for prefix in self.selection.prefixes) / max(1, num_tokens)

    def keeps(self, selected: SelectedPrefix, part: slice, phase: int) -> np.ndarray:
        """Which of a part of the selected sequences a phase keeps, bool."""
        value, last_id = self._threshold(phase)
        order_K = self._order(selected, part, phase)
        ids_K = selected.indices()[part] + selected.start
        return (order_K > value) | ((order_K == value) & (ids_K <= last_id))

    def _threshold(self, phase: int) -> tuple[float, int]:
        """What the last kept sequence of all prefixes is ordered by, and its id; equal ones are kept by id."""
        with self._lock:
            if phase not in self._thresholds:
                self._thresholds[phase] = self._find_threshold(phase)
            return self._thresholds[phase]

    def _find_threshold(self, phase: int) -> tuple[float, int]:
        ratio = self.phases[phase].ratio
        assert ratio is not None
        num_kept = max(1, int(ratio * self.selection.summary["num_eligible"]))
        prefixes = self.selection.prefixes
        order_K = np.concatenate([self._order(prefix, slice(None), phase) for prefix in prefixes])
        value = float(np.partition(order_K, len(order_K) - num_kept)[len(order_K) - num_kept])
        num_ties = num_kept - int(np.count_nonzero(order_K > value))
        place = int(np.flatnonzero(order_K == value)[num_ties - 1])  # prefixes and their indices ascend, as ids do
        for prefix in prefixes:
            if place < prefix.num_sequences:
                return value, int(prefix.indices()[place]) + prefix.start
            place -= prefix.num_sequences
        raise AssertionError("the place lies in one of the prefixes")

    def _order(self, selected: SelectedPrefix, part: slice, phase: int) -> np.ndarray:
        """What sequences are ordered by in a phase, (K,) float64."""
        summary, temperature = self.selection.summary, self.phases[phase].temperature
        value_K = np.asarray(selected.values()[part])
        if temperature is None and summary["sampling"] == "gumbel":
            temperature = summary["temperature"]
        if not temperature:
            return value_K
        ids_K = selected.indices()[part] + selected.start
        return perturbed(value_K, ids_K, temperature=temperature, seed=summary.get("seed", 1))

    def __getstate__(self) -> dict[str, Any]:
        return {"selection": self.selection, "phases": self.phases}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class RefinedPrefix:
    """What is done with one prefix.

    Attributes:
        pool: the selection.
        selected: its part of this prefix.
        weighting: `none`, `resample` or `loss`.
    """

    pool: Pool
    selected: SelectedPrefix
    weighting: str

    def epoch(self, first: int, stop: int, *, phase: int, epoch: int, seed: int) -> np.ndarray:
        """The sequences of one epoch.

        Args:
            first, stop: sequences of the prefix that may be drawn from (its part of a split).

        Returns:
            (K,) int32, ascending; several times where the weights say so.
        """
        low, high = np.searchsorted(self.selected.indices(), (first, stop)).tolist()
        parts = [
            self._drawn(slice(start, min(start + _CHUNK_SEQUENCES, high)), phase=phase, epoch=epoch, seed=seed)
            for start in range(low, high, _CHUNK_SEQUENCES)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    def _drawn(self, part: slice, *, phase: int, epoch: int, seed: int) -> np.ndarray:
        """What an epoch has of a part of the selected sequences."""
        # A copy, since NumPy shuffles subclasses such as maps one by one.
        kept_K = np.array(self.selected.indices()[part], np.int32, subok=False)
        is_kept_K = None
        if self.pool.phases[phase].ratio is not None:
            is_kept_K = self.pool.keeps(self.selected, part, phase)
            kept_K = kept_K[is_kept_K]
        if self.weighting != "resample":
            return kept_K
        weight_K = np.asarray(self.selected.weights()[part])
        weight_K = weight_K if is_kept_K is None else weight_K[is_kept_K]
        # Epochs of different phases draw different numbers.
        draw = phase << 32 | epoch
        ids_K = kept_K.astype(np.int64) + self.selected.start
        return np.repeat(kept_K, copies_of(weight_K, ids_K, seed=seed, epoch=draw))

    def look_up(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What some kept sequences are ranked by, float64, -inf where nothing was scored; and weights, float32."""
        return self.selected.look_up(sequences)

    def loss_weights(self, weights: np.ndarray) -> np.ndarray:
        """What losses are multiplied by, float32: above 0, with mean 1 over the tokens of the selection."""
        return np.maximum(weights / self.pool.scale, _LEAST_WEIGHT).astype(np.float32)

    def identity(self, starts: tuple[int, ...]) -> dict[str, Any]:
        """What decides the order of samples, for the key of Megatron's index cache.

        Args:
            starts: first sample of each phase in this prefix.
        """
        files = self.pool.selection.manifest.files
        identity: dict[str, Any] = {
            "corpus": self.selected.fingerprint,
            "indices": files[self.selected.indices_path.name]["blake2b"],
        }
        if self.weighting == "resample":
            identity["resampled by"] = files[self.selected.weights_path.name]["blake2b"]
        if self.pool.phases != WHOLE_RUN:
            identity["selection"] = self.pool.selection.manifest.fingerprint
            identity["phases"] = [
                [start, phase.ratio, phase.temperature] for start, phase in zip(starts, self.pool.phases, strict=False)
            ]
        return identity

    def description(self) -> str:
        """One line for people."""
        selected, directory = self.selected, self.pool.selection.directory
        share = selected.num_sequences / max(1, selected.num_source_sequences)
        weighting = {"none": "all weights 1", "resample": "drawn by weight", "loss": "losses scaled by weight"}
        described = weighting[self.weighting]
        if self.weighting == "none" and self.pool.selection.summary.get("weights", "none") != "none":
            described = "its weights are not used (--miniplm-weighting resample or loss would use them)"
        return (
            f"{selected.num_sequences:,} of {selected.num_source_sequences:,} sequences ({share:.1%}) by {directory}, "
            f"{described}"
        )

    def check_corpus(self, path: str, num_sequences: int) -> None:
        """Check that the prefix of the blend is what was selected from.

        Raises:
            FingerprintMismatchError: it is not.
        """
        directory, expected = self.pool.selection.directory, self.selected.num_source_sequences
        if num_sequences != expected:
            raise FingerprintMismatchError(
                f"{directory} was selected from {self.selected.name} with {expected:,} sequences, but {path} has "
                f"{num_sequences:,}: select again, or bring the old corpus back"
            )
        if path.startswith(OBJECT_STORAGE):
            return  # its .bin is not read for a fingerprint
        self.selected.refuse_another(path, IndexedCorpus.open(path).fingerprint())
