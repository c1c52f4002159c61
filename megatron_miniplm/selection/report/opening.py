"""A selection, and what it was made from, as it lies on disk now."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.selections import SELECTION, Selection
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER, ScoredCorpus

SEEN = "seen by the reference"


@dataclass(frozen=True, kw_only=True)
class ReportedSelection:
    """What a report is about.

    Attributes:
        selection: as written.
        corpus: its scores.
        rule: what was asked for.
        seen: prefixes that the reference was trained on, where they were excluded.
    """

    selection: Selection
    corpus: ScoredCorpus
    rule: Rule
    seen: tuple[Path, ...]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a selection and the scores and corpora that its manifest names.

        Raises:
            InputError: a parent is gone.
            FingerprintMismatchError: a parent has changed since the selection was made.
            CorruptArtifactError: `selection.json` does not say how it was made.
        """
        selection = Selection.open(directory)
        rule = _rule_of(selection)
        parents = [parent for parent in selection.manifest.inputs if parent.role in (TEACHER, REFERENCE, PREDICTIONS)]
        paths = {parent.role: parent_path(directory, parent) for parent in parents}
        if not paths:
            raise CorruptArtifactError(f"{directory} names no scores in its manifest: make the selection again")
        for role, path in paths.items():
            if not path.is_dir():
                raise InputError(f"{path}, the {role} of {directory}, is not there: bring the directory back")
        corpus = ScoredCorpus.open(paths)
        for parent in parents:
            if (found := corpus.manifests[parent.role].fingerprint) != parent.fingerprint:
                raise FingerprintMismatchError(
                    f"{directory} was made from {parent.role} [{parent.fingerprint[:SHORT_HEX]}], but "
                    f"{paths[parent.role]} is now [{found[:SHORT_HEX]}]: make the selection again, or bring the old "
                    "scores back"
                )
        if fingerprints_of(selection) != corpus.fingerprints:
            raise CorruptArtifactError(f"{directory / SELECTION} is of another corpus than its scores: select again")
        excludes_seen = selection.summary.get("seen_by_reference") == "exclude"
        seen = [parent_path(directory, parent) for parent in selection.manifest.inputs if parent.role == SEEN]
        return cls(selection=selection, corpus=corpus, rule=rule, seen=tuple(seen) if excludes_seen else ())

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


def fingerprints_of(selection: Selection) -> list[str]:
    return [prefix["fingerprint"] for prefix in selection.summary["prefixes"]]


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


def _rule_of(selection: Selection) -> Rule:
    """The rule, from the settings that stand in `selection.json`."""
    summary = selection.summary
    try:
        names = {field.name for field in fields(Rule)} & summary.keys()
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value := summary[name], list) else value for name in names
        }
        measure = Measure(expression=summary["from_scores"], reduction=summary["score_reduction"])
        return Rule(measure=measure, **values)
    except (KeyError, TypeError, InputError) as error:
        path = selection.directory / SELECTION
        raise CorruptArtifactError(
            f"{path} does not say how it was made ({error!r}): make the selection again"
        ) from None
