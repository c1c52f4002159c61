"""A selection and what it was made from, as they are on disk now."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import ArtifactInput
from megatron_miniplm.artifacts.scores import is_score_store
from megatron_miniplm.artifacts.selections import SEEN, SELECTION, SelectedPrefix, Selection
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.candidates import Attributes, collect_attributes
from megatron_miniplm.selection.ranks import OneProcess
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER, ScoredCorpus


@dataclass(frozen=True, kw_only=True)
class ReopenedSelection:
    """A selection with all that decided it.

    Attributes:
        selection: as written.
        corpus: its scores.
        rule: what was asked for.
        seen: prefixes that the reference was trained on, where they were excluded; else empty.
    """

    selection: Selection
    corpus: ScoredCorpus
    rule: Rule
    seen: tuple[Path, ...]

    @classmethod
    def of(cls, selection: Selection) -> Self:
        """Open the scores and corpora that the manifest of a selection names.

        Raises:
            InputError: a parent is gone.
            FingerprintMismatchError: a parent has changed since the selection was made.
            CorruptArtifactError: `selection.json` or the manifest does not say how the selection was made.
        """
        rule, excludes_seen = _how_it_was_made(selection)
        directory = selection.directory
        parents = [parent for parent in selection.manifest.inputs if parent.role in (TEACHER, REFERENCE, PREDICTIONS)]
        paths = {parent.role: parent_path(directory, parent) for parent in parents}
        if not paths:
            raise CorruptArtifactError(f"{directory} names no scores in its manifest: make the selection again")
        for role, path in paths.items():
            if not is_score_store(path):
                raise InputError(f"{path}, the {role} of {directory}, is not there: bring the directory back")
        corpus = ScoredCorpus.open(paths)
        for parent in parents:
            _refuse_changed(selection, parent, corpus.manifests[parent.role].fingerprint)
        if _fingerprints(selection) != corpus.fingerprints:
            raise CorruptArtifactError(f"{directory / SELECTION} is of another corpus than its scores: select again")
        seen = _seen_prefixes(selection) if excludes_seen else ()
        return cls(selection=selection, corpus=corpus, rule=rule, seen=seen)

    def attributes(self, scratch: Path) -> Attributes:
        """What the rule needs to know of the sequences beside their scores, with large arrays in `scratch`."""
        return collect_attributes(
            self.corpus.corpora,
            scratch,
            with_domains=self.rule.needs_domains,
            with_bytes=self.rule.measure.reduction == "bits-per-byte",
            seen=self.seen,
            ranks=OneProcess(),
        )

    @property
    def has_teacher(self) -> bool:
        return self._has(TEACHER)

    @property
    def has_reference(self) -> bool:
        return self._has(REFERENCE)

    def _has(self, role: str) -> bool:
        """Whether a model's NLLs are known of every sequence; with predictions, only those of a sample are."""
        return role in self.corpus.stores and PREDICTIONS not in self.corpus.stores

    @property
    def lowest_values(self) -> list[float | None]:
        """Least value that a sequence needs to be kept, in the order of the thresholds; None without a threshold.

        Empty for a random sample, where noise decides too.
        """
        if self.rule.sampling != "top":
            return []
        values = [threshold["value"] for threshold in self.selection.summary["thresholds"]]
        if self.rule.drop_negative:
            return [None if value is None else max(0.0, value) for value in values]
        return values


class KeptCursor:
    """Reads the kept sequences of one prefix in order; the file is read once, not mapped."""

    def __init__(self, prefix: SelectedPrefix) -> None:
        self._prefix = prefix
        self._num_taken = 0
        self._last = -1

    def take(self, stop: int) -> np.ndarray:
        """The next kept sequences below `stop`, int64.

        Raises:
            CorruptArtifactError: the file does not hold ascending sequences of its prefix.
        """
        num_left = self._prefix.num_sequences - self._num_taken
        count = min(num_left, stop - self._last - 1)  # they ascend
        index_K = np.zeros(0, np.int64)
        if count > 0:
            index_K = self._prefix.checked_indices.read(self._num_taken, self._num_taken + count)
        is_ascending = not len(index_K) or (index_K[0] > self._last and bool((np.diff(index_K) > 0).all()))
        taken_K = index_K[: np.searchsorted(index_K, stop)]
        is_last = stop == self._prefix.num_source_sequences
        if not is_ascending or (is_last and len(taken_K) < num_left):
            raise CorruptArtifactError(
                f"{self._prefix.indices_path} does not hold ascending numbers below "
                f"{self._prefix.num_source_sequences}: make the selection again"
            )
        self._num_taken += len(taken_K)
        self._last = stop - 1
        return taken_K


def require_same_corpus(selection: Selection, others: Sequence[Selection]) -> None:
    """Raise InputError if the global ids of one of the others mean other sequences."""

    def described(one: Selection) -> str:
        entries = one.summary["prefixes"]
        return ", ".join(f"{entry['name']} [{entry['fingerprint'][:SHORT_HEX]}]" for entry in entries)

    for other in others:
        if _fingerprints(selection) != _fingerprints(other):
            raise InputError(
                f"{selection.directory} is a selection of {described(selection)}, but {other.directory} of "
                f"{described(other)}: compare selections of the same prefixes in the same order"
            )


def _fingerprints(selection: Selection) -> list[Fingerprint]:
    """Those of the source prefixes, in order."""
    return [prefix["fingerprint"] for prefix in selection.summary["prefixes"]]


def _how_it_was_made(selection: Selection) -> tuple[Rule, bool]:
    """The rule, and whether what the reference has seen was excluded, from `selection.json`."""
    try:
        return Rule.from_settings(selection.summary), selection.summary["seen_by_reference"] == "exclude"
    except (KeyError, TypeError, InputError) as error:
        path = selection.directory / SELECTION
        raise CorruptArtifactError(
            f"{path} does not say how it was made ({error!r}): make the selection again"
        ) from None


def _seen_prefixes(selection: Selection) -> tuple[Path, ...]:
    """The prefixes that the reference was trained on, unchanged since."""
    parents = [parent for parent in selection.manifest.inputs if parent.role == SEEN]
    paths = [parent_path(selection.directory, parent) for parent in parents]
    for parent, path in zip(parents, paths, strict=True):
        _refuse_changed(selection, parent, IndexedCorpus.open(path).fingerprint())
    return tuple(paths)


def _refuse_changed(selection: Selection, parent: ArtifactInput, found: Fingerprint) -> None:
    if found != parent.fingerprint:
        raise FingerprintMismatchError(
            f"{selection.directory} was made from {parent.role} [{parent.fingerprint[:SHORT_HEX]}], but "
            f"{parent_path(selection.directory, parent)} is now [{found[:SHORT_HEX]}]: make the selection again, or "
            "bring the old one back"
        )
