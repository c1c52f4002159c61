"""Typed and bounded access to the fields of a `config.json`, which may hold anything."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import Family

#: What to do about a model that `--load-hf` cannot read.
OTHER_ROUTE = "convert the model to a Megatron checkpoint with megatron-bridge, and give that with --load"
#: Defaults that all families share; `hidden_size` and the like have none, a config without them is no config.
SHARED_DEFAULTS: Mapping[str, Any] = {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "tie_word_embeddings": False}
#: Well above every published model. A larger number is damage, and would take memory or minutes before anything fails.
LIMITS: Mapping[str, int] = {
    "num_hidden_layers": 1 << 12,
    "hidden_size": 1 << 20,
    "intermediate_size": 1 << 22,
    "num_attention_heads": 1 << 14,
    "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 14,
    "vocab_size": 1 << 26,
    "max_position_embeddings": 1 << 31,
    "num_local_experts": 1 << 14,
    "num_experts_per_tok": 1 << 14,
    "sliding_window": 1 << 31,
    "max_window_layers": 1 << 12,
}
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class ConfigFields:
    """The fields of one `config.json`; every method raises `InputError` with the file and the field.

    Attributes:
        place: of the file, for messages.
    """

    config: Mapping[str, Any]
    family: Family
    place: Path

    def value(self, name: str) -> Any:
        """A field, or the family's default for it; it may be null."""
        defaults = {**SHARED_DEFAULTS, **self.family.defaults}
        if name not in self.config and name not in defaults:
            raise InputError(f"{self.place}: {name} is missing: download the file again")
        return self.config.get(name, defaults.get(name))

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """An integer within `LIMITS`; `default` where it is null or absent and the family has no default either."""
        found = self.config.get(name, self.family.defaults.get(name))
        found = default if found is None else found
        if type(found) is not int or found < least:
            kind = "a positive" if least else "a non-negative"
            raise InputError(
                f"{self.place}: {name} is {shown(found)}, expected {kind} integer: download the file again"
            )
        if found > LIMITS[name]:
            raise InputError(
                f"{self.place}: {name} is {found}, more than {LIMITS[name]:,}, the most that is accepted: "
                "download the file again"
            )
        return found

    def number(self, name: str, found: Any, *, most: float) -> float:
        """`found`, the value of a field, as a finite number above zero."""
        if type(found) not in (int, float) or not math.isfinite(found) or not 0 < found <= most:
            raise InputError(
                f"{self.place}: {name} is {shown(found)}, expected a positive number up to {most:g}: "
                "download the file again"
            )
        return float(found)

    def boolean(self, name: str, *, default: bool | None = None) -> bool:
        """A field that is true or false."""
        found = self.config.get(name, default) if default is not None else self.value(name)
        if not isinstance(found, bool):
            raise InputError(f"{self.place}: {name} is {shown(found)}, expected true or false: download the file again")
        return found

    def object(self, name: str) -> Mapping[str, Any]:
        """A field that is an object; empty where it is absent or null."""
        found = self.config.get(name)
        if found is not None and not isinstance(found, dict):
            raise InputError(f"{self.place}: {name} is {shown(found)}, expected an object: download the file again")
        return found or {}

    def require(self, name: str, found: Any, accepted: tuple[Any, ...]) -> None:
        """Refuse a value that Megatron's decoder cannot express."""
        if found not in accepted:
            self.refuse(f"{name} is {shown(found)}, Megatron's decoder has {accepted[0]!r} only")

    def refuse(self, reason: str) -> NoReturn:
        """Refuse the model for what its config says."""
        raise InputError(f"{self.place}: {reason}: {OTHER_ROUTE}")


def shown(found: Any) -> str:
    """A value for a message, shortened."""
    text = repr(found)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
