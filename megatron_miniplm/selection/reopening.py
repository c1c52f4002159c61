"""A selection, and what it was made from, as it lies on disk now."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import ArtifactInput
from megatron_miniplm.artifacts.scores import is_score_store
from megatron_miniplm.artifacts.selections import SEEN, SELECTION, Selection
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
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
        if fingerprints_of(selection) != corpus.fingerprints:
            raise CorruptArtifactError(f"{directory / SELECTION} is of another corpus than its scores: select again")
        seen = _seen_prefixes(selection) if excludes_seen else ()
        return cls(selection=selection, corpus=corpus, rule=rule, seen=seen)


def fingerprints_of(selection: Selection) -> list[Fingerprint]:
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
