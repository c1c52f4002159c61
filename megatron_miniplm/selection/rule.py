"""What is kept, as the user has said it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, get_type_hints

import msgspec
import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.difference import Measure

RATIO_OF = ("sequences", "tokens")
SAMPLING = ("top", "gumbel")
WEIGHTS = ("none", "softmax", "linear", "rank")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which sequences are kept and what they weigh. One of `ratio`, `target_tokens` and `threshold` is given.

    Sequences that a filter (`min_tokens`, domains, the reference split) leaves out do not take part: a ratio is one of
    the rest.

    Attributes:
        ratio: share to keep, in (0, 1]; of sequences rounded down, but at least one; of tokens rounded up to whole
            sequences.
        ratio_of: `sequences`, or `tokens` as Megatron trains on them (not scored ones, which are one less a sequence).
        target_tokens: tokens to keep, rounded up to whole sequences.
        threshold: lowest value to keep, in the unit of the measure.
        measure: what sequences are ranked by.
        sampling: the `top` set, or a `gumbel` sample in proportion to exp(value / temperature).
        per_domain: the ratio or target holds in every domain.
        min_tokens: of a sequence.
        drop_negative: leave out what the ratio would keep though its difference is negative.
        weights: `none` makes all 1; else a function of the value, with mean 1.
        weight_temperature: of the softmax.
        weight_cap: greatest weight.
        repeat: views have every sequence as often as its weight says, on average.
    """

    ratio: float | None = None
    ratio_of: str = "sequences"
    target_tokens: int | None = None
    threshold: float | None = None
    measure: Measure = field(default_factory=Measure)
    sampling: str = "top"
    temperature: float = 1.0
    seed: int = 1
    per_domain: bool = False
    keep_domains: tuple[str, ...] = ()
    drop_domains: tuple[str, ...] = ()
    min_tokens: int = 0
    drop_negative: bool = False
    weights: str = "none"
    weight_temperature: float = 1.0
    weight_cap: float = 10.0
    repeat: bool = False

    def __post_init__(self) -> None:
        """Check what the flags say.

        Raises:
            InputError: they contradict one another, or a number is out of range.
        """
        given = [value for value in (self.ratio, self.target_tokens, self.threshold) if value is not None]
        if len(given) != 1:
            raise InputError("give one of --ratio, --target-tokens and --threshold")
        for flag, choice, choices in (
            ("--ratio-of", self.ratio_of, RATIO_OF),
            ("--sampling", self.sampling, SAMPLING),
            ("--weights", self.weights, WEIGHTS),
        ):
            if choice not in choices:
                raise InputError(f"{flag} {choice!r} is not one of {', '.join(choices)}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise InputError(f"--ratio {self.ratio} must lie in (0, 1]")
        for flag, count, least in (("--target-tokens", self.target_tokens, 1), ("--min-tokens", self.min_tokens, 0)):
            if count is not None and not least <= count < 1 << 62:  # shares of it are computed in int64
                raise InputError(f"{flag} {count} must lie in [{least}, 2^62)")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise InputError(f"--threshold {self.threshold} must be a finite number")
        for flag, value in (
            ("--temperature", self.temperature),
            ("--weight-temperature", self.weight_temperature),
        ):
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{flag} {value} must be greater than 0")
        if not (math.isfinite(self.weight_cap) and self.weight_cap >= 1):
            raise InputError(f"--weight-cap {self.weight_cap} must be at least 1: the mean weight is 1")
        if not 0 <= self.seed < 1 << 63:
            raise InputError(f"--seed {self.seed} must lie in [0, 2^63)")
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.threshold is not None and self.sampling != "top":
            raise InputError("--threshold keeps all above it and samples nothing: give --ratio or --target-tokens")
        if self.threshold is not None and self.per_domain:
            raise InputError("--threshold is the same in every domain: leave --per-domain out")
        if self.drop_negative and not self.measure.is_difference:
            raise InputError("--drop-negative asks for a difference, --rank-by ranks by something else")
        if self.repeat and self.weights == "none":
            raise InputError("--repeat-by-weight repeats nothing where all weights are 1: give --weights")
        if both := sorted(set(self.keep_domains) & set(self.drop_domains)):
            raise InputError(f"domain {both[0]!r} is in --keep-domain and in --drop-domain")

    @property
    def counts_tokens(self) -> bool:
        """Whether the target is a number of tokens."""
        return self.target_tokens is not None or (self.ratio is not None and self.ratio_of == "tokens")

    @property
    def needs_domains(self) -> bool:
        return bool(self.per_domain or self.keep_domains or self.drop_domains)

    def targets(self, count_G: np.ndarray, size_G: np.ndarray) -> np.ndarray:
        """How much of each group is to be kept, (G,) int64, from the numbers of its sequences and their size."""
        if self.target_tokens is not None:
            # Domains share a target by their tokens.
            share_G = size_G / max(1, size_G.sum())
            return np.ceil(self.target_tokens * share_G).astype(np.int64)
        assert self.ratio is not None
        if self.ratio_of == "tokens":
            return np.array([math.ceil(self.ratio * size) for size in size_G.tolist()], np.int64)
        return np.array([max(1, int(self.ratio * count)) for count in count_G.tolist()], np.int64)

    def settings(self) -> dict[str, Any]:
        """What shapes the selection, as JSON; flags that do nothing here are left out."""
        settings = {name: value for name, value in asdict(self).items() if value is not None and name != "measure"}
        settings |= {"from_scores": self.measure.expression, "score_reduction": self.measure.reduction}
        if self.sampling == "top":
            del settings["temperature"]
        if self.weights != "softmax":
            del settings["weight_temperature"]
        if self.weights == "none":
            del settings["weight_cap"]
        if self.sampling == "top" and not self.repeat:
            del settings["seed"]
        if not (self.ratio is not None):
            del settings["ratio_of"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The rule that `settings` were of, as far as it shapes a selection.

        Args:
            settings: other entries are ignored, so that the whole of a `selection.json` will do.

        Raises:
            KeyError, TypeError: there are none.
            InputError: they contradict one another.
        """
        kinds = get_type_hints(cls)
        values = {
            field.name: _converted(field.name, settings[field.name], kinds[field.name])
            for field in fields(cls)
            if field.name in settings
        }
        measure = Measure(expression=settings["from_scores"], reduction=settings["score_reduction"])
        return cls(measure=measure, **values)


def _converted(name: str, value: Any, kind: Any) -> Any:
    """A value of JSON as the type of a field; raises TypeError where it is another."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise TypeError(f"{name}: {error}") from None
