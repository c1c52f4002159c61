"""Validation loss against training tokens, from the TensorBoard logs that Megatron writes."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.run_records import VALIDATION_RECORD, read_record
from megatron_miniplm.errors import InputError

#: Megatron's tags: loss in nats a token against consumed samples (training.py, `evaluate_and_print_results`); with
#: `--multiple-validation-sets` one a set, such as "lm loss validation-heldout vs samples".
VALIDATION_TAG = re.compile(r"lm loss validation(?:-(?P<set>.+))? vs samples")


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """Validation loss at increasing numbers of training tokens.

    Attributes:
        tokens_E: training tokens at each of E evaluations, int64, ascending.
        loss_RE: nats a token of R runs that differ in the seed, float64.
    """

    tokens_E: np.ndarray
    loss_RE: np.ndarray

    @property
    def mean_E(self) -> np.ndarray:
        return self.loss_RE.mean(axis=0)

    @property
    def standard_error_E(self) -> np.ndarray | None:
        """Of the mean over seeds; None for a single run."""
        runs = len(self.loss_RE)
        return self.loss_RE.std(axis=0, ddof=1) / np.sqrt(runs) if runs > 1 else None

    def tokens_to_reach(self, loss: float) -> float | None:
        """Training tokens after which the mean curve first is at `loss`, interpolated linearly; None if never."""
        mean_E = self.mean_E
        reached_E = mean_E <= loss
        if not reached_E.any():
            return None
        at = int(np.argmax(reached_E))
        if at == 0:
            return float(self.tokens_E[0])
        above, below = mean_E[at - 1], mean_E[at]
        share = (above - loss) / (above - below)
        return float(self.tokens_E[at - 1] + share * (self.tokens_E[at] - self.tokens_E[at - 1]))


def require_same_validation(log_dirs: Sequence[Path]) -> str | None:
    """Check that runs were validated on the same data, as far as they have recorded it.

    Returns:
        A warning, where some runs have no record; None if all are known to agree.

    Raises:
        InputError: two runs, or one before and after it was resumed, were validated on different data.
    """
    first: tuple[Path, list[Any]] | None = None
    unknown = []
    for log_dir in log_dirs:
        record = read_record(log_dir / VALIDATION_RECORD, fields={"validation": list})
        if record is None:
            unknown.append(log_dir)
            continue
        for found in record["validation"]:
            first = first or (log_dir, found)
            if found != first[1]:
                raise InputError(
                    f"{first[0]} was validated on {_described(first[1])}, {log_dir} on {_described(found)}: their "
                    "losses cannot be compared; train with the same --valid-data-path, of text that no run trains on"
                )
    if not unknown:
        return None
    return (
        f"warning: {unknown[0]} does not say what it was validated on"
        + (f", nor do {len(unknown) - 1} others" if len(unknown) > 1 else "")
        + ": the losses are comparable only if all runs had the same --valid-data-path (a view's own validation split "
        "is refined data)"
    )


def _described(validation: Any) -> str:
    """Names and fingerprints of validation data, in a few words."""
    entries = [entry for entry in validation if isinstance(entry, dict)] if isinstance(validation, list) else []
    parts = [
        f"{entry.get('name')} [{str(entry.get('fingerprint'))[:SHORT_HEX]}]"
        + ("" if entry.get("split") is None else f" split {entry['split']}")
        for entry in entries[:3]
    ]
    return ", ".join(parts) + (f" and {len(entries) - 3} more" if len(entries) > 3 else "") or "nothing"


def read_curve(log_dirs: Sequence[Path], *, tokens_per_sample: int, validation_set: str | None = None) -> LossCurve:
    """Read the runs of one kind, one directory a seed.

    Args:
        log_dirs: what was given to Megatron as `--tensorboard-dir`.
        tokens_per_sample: the run's `--seq-length`.
        validation_set: which one, where the runs have several.

    Raises:
        InputError: a directory holds no validation losses, or the runs were evaluated at different points.
    """
    runs = [_read_run(path, validation_set) for path in log_dirs]
    steps = list(runs[0])
    for path, run in zip(log_dirs, runs, strict=True):
        if list(run) != steps:
            raise InputError(f"{path} was evaluated after other numbers of samples than {log_dirs[0]}: train alike")
    return LossCurve(
        tokens_E=np.array(steps, np.int64) * tokens_per_sample,
        loss_RE=np.array([list(run.values()) for run in runs], np.float64),
    )


def _read_run(log_dir: Path, validation_set: str | None) -> dict[int, float]:
    """Consumed samples -> loss; a resumed run repeats points, the last one counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not log_dir.is_dir():
        raise InputError(f"{log_dir} is not a directory of TensorBoard logs")
    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it tells of every file that it has read to the end
    events = EventAccumulator(str(log_dir), size_guidance={"scalars": 0})
    events.Reload()
    sets = {match["set"]: match[0] for tag in events.Tags()["scalars"] if (match := VALIDATION_TAG.fullmatch(tag))}
    if not sets:
        raise InputError(f"{log_dir} holds no validation loss: train with --tensorboard-dir and --eval-interval")
    chosen = next(iter(sets)) if validation_set is None and len(sets) == 1 else validation_set
    if chosen not in sets:
        raise InputError(f"{log_dir} holds the validation sets {', '.join(map(str, sets))}: name one")
    return {event.step: event.value for event in sorted(events.Scalars(sets[chosen]), key=lambda event: event.step)}
