"""What a report is about: a selection, and what it was made from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.reopening import ReopenedSelection, fingerprints_of
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER


@dataclass(frozen=True, kw_only=True)
class ReportedSelection(ReopenedSelection):
    """A reopened selection, and what the page asks of it."""

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a selection and what its manifest names; raises what `ReopenedSelection.of` does."""
        return cls.of(Selection.open(directory))

    @property
    def directory(self) -> Path:
        return self.selection.directory

    @property
    def has_teacher(self) -> bool:
        return self._has(TEACHER)

    @property
    def has_reference(self) -> bool:
        return self._has(REFERENCE)

    @property
    def thresholds(self) -> list[dict[str, Any]]:
        """`domain` and `value` of each threshold, the domain None where there is one for all."""
        return list(self.selection.summary["thresholds"])

    @property
    def lowest_values(self) -> list[float | None]:
        """What a sequence needs at least to be kept, by the place of its domain in `thresholds`; None without.

        Empty where values do not decide alone, but noise as well.
        """
        if self.rule.sampling != "top":
            return []
        values = [threshold["value"] for threshold in self.thresholds]
        if self.rule.drop_negative:
            return [None if value is None else max(0.0, value) for value in values]
        return values

    def _has(self, role: str) -> bool:
        """Whether a model's NLLs are known of every sequence; beside predictions they are of a sample."""
        return role in self.corpus.stores and PREDICTIONS not in self.corpus.stores


def require_same_corpus(selection: Selection, other: Selection) -> None:
    """Raise InputError where global ids of two selections are not those of the same sequences."""
    if fingerprints_of(selection) == fingerprints_of(other):
        return

    def described(one: Selection) -> str:
        entries = one.summary["prefixes"]
        return ", ".join(f"{entry['name']} [{entry['fingerprint'][:SHORT_HEX]}]" for entry in entries)

    raise InputError(
        f"{selection.directory} is a selection of {described(selection)}, but {other.directory} of "
        f"{described(other)}: compare selections of the same prefixes in the same order"
    )
