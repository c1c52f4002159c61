"""Chosen sequences -> the three arrays by which `GPTDataset` finds its samples; pure.

    document_index (D,) int32       sequences in the order in which their tokens are strung together
    sample_index (N + 1, 2)         where each sample begins: place in the document index, token of that sequence
    shuffle_index (N,)              the order in which samples are read

For epochs that are all alike the arrays are, number for number, those of `GPTDataset`
(core/datasets/gpt_dataset.py:535 to 606 in megatron-core 0.19.2), whose random draws are repeated in its order; they
are made with a third of its memory. Two things are added: epochs may differ (weighted resampling), and a run may have
phases that draw from different sets, given as `0:1.0,50000:0.5`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from megatron_miniplm.errors import InputError

#: Megatron shuffles the last epoch apart from the others if less than this part of it is needed.
_SEPARATE_BELOW = 0.80
_CHUNK_SEQUENCES = 1 << 22

#: The sequences of an epoch of a phase, (K,) int32, in any fixed order; repeated ones several times.
EpochOf = Callable[[int, int], np.ndarray]


class NothingToTrainOnError(Exception):
    """An epoch has no token."""


@dataclass(frozen=True, kw_only=True)
class IndexSettings:
    """What decides the arrays beside the sequences.

    Attributes:
        sequence_length: tokens of a sample, without the extra one.
        extra_tokens: 1 if a sample has one more token, for the labels.
        num_samples: at least so many are made; None for one epoch.
        seed: of the shuffling.
        drops_last: whether a last sample that is not full is left out.
        phase_starts: first sample of each phase; (0,) without a schedule.
        epochs_differ: whether an epoch has other sequences than the one before it.
    """

    sequence_length: int
    extra_tokens: int
    num_samples: int | None
    seed: int
    drops_last: bool = True
    phase_starts: tuple[int, ...] = (0,)
    epochs_differ: bool = False


@dataclass(kw_only=True)
class _Stream:
    """The document index as it grows.

    Attributes:
        parts: of the document index.
        num_tokens: of all parts.
        cuts: samples at which another range of the shuffle begins.
        epochs: of the only phase: how many, and tokens of each; None where they differ.
    """

    parts: list[np.ndarray] = field(default_factory=list)
    num_tokens: int = 0
    cuts: list[int] = field(default_factory=lambda: [0])
    epochs: tuple[int, int] | None = None


def build_indices(
    epoch_of: EpochOf, length_N: np.ndarray, settings: IndexSettings, build_sample_index: Callable[..., np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Document, sample and shuffle index.

    Args:
        epoch_of: called with a phase and an epoch of it, in order.
        length_N: tokens of every sequence of the prefix, int32.
        build_sample_index: `megatron.core.datasets.helpers.build_sample_idx`.

    Raises:
        NothingToTrainOnError: an epoch has no token.
    """
    random = np.random.RandomState(settings.seed)
    stream = _Stream()
    for phase in range(len(settings.phase_starts)):
        _append_phase(stream, phase, epoch_of, length_N, settings, random)
    document_index = stream.parts[0] if len(stream.parts) == 1 else np.concatenate(stream.parts)
    stream.parts.clear()
    num_epochs, epoch_tokens = stream.epochs or (1, stream.num_tokens)
    sample_index = build_sample_index(
        length_N.copy() if 2 * len(document_index) > len(length_N) else length_N,
        document_index,
        settings.sequence_length,
        num_epochs,
        epoch_tokens,
        settings.drops_last,
        bool(settings.extra_tokens),
    )
    return document_index, sample_index, _shuffled(len(sample_index) - 1, stream.cuts, random)


def _append_phase(
    stream: _Stream,
    phase: int,
    epoch_of: EpochOf,
    length_N: np.ndarray,
    settings: IndexSettings,
    random: np.random.RandomState,
) -> None:
    """String the epochs of one phase onto the stream, as many as its samples need."""
    is_last = phase == len(settings.phase_starts) - 1
    first_sample = settings.phase_starts[phase]
    end_sample = settings.num_samples if is_last else settings.phase_starts[phase + 1]
    if phase:
        stream.cuts.append(first_sample)
    needed = 1
    if end_sample is not None:
        needed = end_sample * settings.sequence_length - stream.num_tokens
        needed += settings.extra_tokens if is_last else 0
    if needed <= 0 and phase:
        return
    epochs, tokens = _epochs(phase, needed, epoch_of, length_N, settings)
    final_tokens = tokens[-1]
    sans_final = sum(tokens) - final_tokens
    samples_sans_final = (stream.num_tokens + sans_final - settings.extra_tokens) // settings.sequence_length
    is_separate = len(tokens) > 1
    if is_separate and is_last:
        assert end_sample is not None
        samples_per_epoch = (final_tokens - settings.extra_tokens) // settings.sequence_length
        is_separate = end_sample - samples_sans_final < int(_SEPARATE_BELOW * samples_per_epoch)
    if is_separate:
        stream.cuts.append(max(samples_sans_final, stream.cuts[-1]))
    whole, final = _strung(epochs, len(tokens), is_separate=is_separate)
    for part in (whole, final):
        if len(part):
            random.shuffle(part)
    if len(whole):
        stream.parts.append(whole)
    stream.num_tokens += sum(tokens)
    if not is_last:
        num_kept, cut_tokens = _place_of(needed - (sans_final if is_separate else 0), final, length_N)
        stream.num_tokens -= (final_tokens if is_separate else sum(tokens)) - cut_tokens
        final = final[:num_kept]
    elif phase == 0 and not settings.epochs_differ:
        stream.epochs = (len(tokens), final_tokens)
    stream.parts.append(final)


def _epochs(
    phase: int, needed: int, epoch_of: EpochOf, length_N: np.ndarray, settings: IndexSettings
) -> tuple[list[np.ndarray], list[int]]:
    """Epochs that have `needed` tokens together, and the tokens of each; one array only where all are alike."""
    epochs: list[np.ndarray] = []
    tokens: list[int] = []
    while not tokens or sum(tokens) < needed:
        epochs.append(epoch_of(phase, len(epochs)))
        tokens.append(num_tokens_of(epochs[-1], length_N))
        if tokens[-1] == 0:
            raise NothingToTrainOnError
        if not settings.epochs_differ:
            return epochs, tokens * max(1, -(-needed // tokens[0]))
    return epochs, tokens


def num_tokens_of(sequences_K: np.ndarray, length_N: np.ndarray) -> int:
    """Tokens of some sequences, counted a piece at a time."""
    starts = range(0, len(sequences_K), _CHUNK_SEQUENCES)
    return sum(int(length_N[sequences_K[start : start + _CHUNK_SEQUENCES]].sum(dtype=np.int64)) for start in starts)


def _place_of(num_tokens: int, sequences_K: np.ndarray, length_N: np.ndarray) -> tuple[int, int]:
    """How many of the first sequences have `num_tokens` or more, and how many tokens these have."""
    seen = 0
    for start in range(0, len(sequences_K), _CHUNK_SEQUENCES):
        running = np.cumsum(length_N[sequences_K[start : start + _CHUNK_SEQUENCES]], dtype=np.int64)
        if seen + running[-1] >= num_tokens:
            place = int(np.searchsorted(running, num_tokens - seen))
            return start + place + 1, seen + int(running[place])
        seen += int(running[-1])
    return len(sequences_K), seen


def _strung(epochs: list[np.ndarray], num_epochs: int, *, is_separate: bool) -> tuple[np.ndarray, np.ndarray]:
    """The sequences of all epochs but the last, and of the last; all of them in the latter if it is not separate."""
    num_whole = num_epochs - 1 if is_separate else 0
    if len(epochs) == 1:
        return np.tile(epochs[0], num_whole), np.tile(epochs[0], num_epochs - num_whole)
    whole = np.concatenate(epochs[:num_whole]) if num_whole else np.zeros(0, np.int32)
    return whole, np.concatenate(epochs[num_whole:])


def _shuffled(num_samples: int, cuts: list[int], random: np.random.RandomState) -> np.ndarray:
    """0 to num_samples - 1, shuffled within the ranges that begin at the cuts."""
    dtype: Any = np.uint32 if num_samples < np.iinfo(np.uint32).max - 1 else np.int64
    shuffle_index = np.arange(num_samples, dtype=dtype)
    for start, stop in pairwise([*(min(cut, num_samples) for cut in cuts), num_samples]):
        random.shuffle(shuffle_index[start:stop])
    return shuffle_index


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training in which one thing is kept.

    Attributes:
        start_sample: consumed samples of the whole run at which it begins.
        ratio: kept fraction of the scored sequences; None keeps all of the selection.
        temperature: of the sampling of those kept; None keeps the order that the selection was made by.
    """

    start_sample: int
    ratio: float | None = None
    temperature: float | None = None


WHOLE_RUN = (Phase(start_sample=0),)


def phases_of(ratio_schedule: str | None, temperature_schedule: str | None) -> tuple[Phase, ...]:
    """The phases that the two flags describe.

    Raises:
        InputError: a schedule cannot be read, or there is a temperature but no ratio for it to choose by.
    """
    if ratio_schedule is None and temperature_schedule is None:
        return WHOLE_RUN
    if ratio_schedule is None:
        raise InputError(
            "--miniplm-temperature-schedule chooses which sequences are kept, not how many: give "
            "--miniplm-ratio-schedule too, such as 0:0.5"
        )
    ratios = _steps("--miniplm-ratio-schedule", ratio_schedule, "a fraction in (0, 1]", lambda ratio: 0 < ratio <= 1)
    temperatures = {}
    if temperature_schedule is not None:
        temperatures = _steps("--miniplm-temperature-schedule", temperature_schedule, "0 or more", lambda t: t >= 0)
    starts = sorted({*ratios, *temperatures})
    return tuple(
        Phase(start_sample=start, ratio=_current(ratios, start), temperature=_current(temperatures, start))
        for start in starts
    )


def _steps(flag: str, text: str, expected: str, is_valid: Callable[[float], bool]) -> dict[int, float]:
    """Value by the sample at which it begins, ascending."""
    steps: dict[int, float] = {}
    for part in text.split(","):
        start, colon, value = part.partition(":")
        try:
            step = (int(start), float(value))
        except ValueError:
            step = None
        if not colon or step is None or step[0] < 0 or not math.isfinite(step[1]) or not is_valid(step[1]):
            raise InputError(f"{flag} {text}: {part!r} is not SAMPLES:VALUE with a value of {expected}")
        steps.setdefault(*step)
    if min(steps) != 0 or list(steps) != sorted(steps) or len(steps) != text.count(",") + 1:
        raise InputError(f"{flag} {text}: samples must begin with 0 and increase, such as 0:1.0,50000:0.5")
    return steps


def _current(steps: dict[int, float], sample: int) -> float | None:
    return next((value for start, value in reversed(steps.items()) if start <= sample), None)


def starts_in_prefix(phases: tuple[Phase, ...], share: float) -> tuple[int, ...]:
    """First sample of each phase among the samples that a blend draws from one prefix.

    Megatron's blend keeps the number drawn from each prefix within one sample of its share at every moment
    (core/datasets/helpers.cpp, build_blending_indices), so a phase begins at most one sample of the prefix early or
    late; without a blend it begins exactly.

    Args:
        share: weight of the prefix in the blend; the weights add up to 1.
    """
    starts = tuple(round(phase.start_sample * share) for phase in phases)
    assert all(first <= second for first, second in pairwise(starts))
    return starts
