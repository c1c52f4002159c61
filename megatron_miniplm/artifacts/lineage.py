"""The tree from an artifact down to raw files and checkpoints, read from manifests."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.manifest import ArtifactInput, is_prefix, load_manifest, manifest_path
from megatron_miniplm.errors import CorruptArtifactError, InputError

CHANGED = "CHANGED since it was used"
NOT_HERE = "not here"
DAMAGED = "its manifest is damaged"
REPEATED = "parents as above"
TOO_DEEP = "its parents are not followed: too many generations"
#: Generations that are followed. A real artifact has about ten; a manifest may name any number of others.
MAX_GENERATIONS = 64


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """One node of the tree.

    Attributes:
        role: what its child used it as; empty for the root.
        path: prefix, directory or file, relative to the working directory where it lies below it.
        kind: the manifest's; None without a manifest, such as for a raw text file or a checkpoint.
        counts: the manifest's.
        fingerprint: the manifest's; without a manifest, the one recorded when it was used.
        notes: any of `CHANGED`, `NOT_HERE`, `DAMAGED` and `REPEATED`.
        parents: in the manifest's order.
    """

    role: str
    path: str
    kind: str | None = None
    counts: dict[str, int] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    notes: tuple[str, ...] = ()
    parents: tuple["Ancestor", ...] = ()

    def __str__(self) -> str:
        role = f"{self.role}: " if self.role else ""
        counts = ", ".join(f"{count:,} {name.removeprefix('num_')}" for name, count in self.counts.items() if count)
        kind = f" ({': '.join(filter(None, (self.kind, counts)))})" if self.kind else ""
        fingerprint = f" [{self.fingerprint[:SHORT_HEX]}]" if self.fingerprint else ""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{role}{self.path}{kind}{fingerprint}{notes}"


def trace_lineage(artifact: Path) -> Ancestor:
    """Follow the parents that the manifests name; an artifact met twice is followed once, so that cycles end."""
    return _trace(relative_to_cwd(artifact), role="", recorded=None, followed=set(), generation=0)


def lineage_lines(artifact: Path) -> list[str]:
    """The tree of `trace_lineage`, one line a node, indented by depth."""
    return _indented(trace_lineage(artifact), depth=0)


def parent_path(artifact: Path, parent: ArtifactInput) -> Path:
    """Where a parent lies, seen from the working directory; `..` is resolved without following symlinks."""
    return relative_to_cwd(manifest_path(artifact).parent / parent.path)


def relative_to_cwd(path: Path) -> Path:
    """The shortest way to write a path for people: relative below the working directory, else absolute."""
    normal = Path(os.path.normpath(path.absolute()))
    return normal.relative_to(Path.cwd()) if normal.is_relative_to(Path.cwd()) else normal


def _trace(
    artifact: Path, *, role: str, recorded: Fingerprint | None, followed: set[Path], generation: int
) -> Ancestor:
    try:
        manifest = load_manifest(artifact)
    except InputError:
        here = artifact.exists() or is_prefix(artifact)
        return Ancestor(role=role, path=str(artifact), fingerprint=recorded, notes=() if here else (NOT_HERE,))
    except CorruptArtifactError:
        return Ancestor(role=role, path=str(artifact), fingerprint=recorded, notes=(DAMAGED,))
    notes = [CHANGED] if recorded not in (None, manifest.fingerprint) else []
    inputs = manifest.inputs
    if inputs and artifact.absolute() in followed:
        notes.append(REPEATED)
        inputs = ()
    elif inputs and generation == MAX_GENERATIONS:
        notes.append(TOO_DEEP)
        inputs = ()
    followed.add(artifact.absolute())
    return Ancestor(
        role=role,
        path=str(artifact),
        kind=manifest.kind,
        counts=manifest.counts,
        fingerprint=manifest.fingerprint,
        notes=tuple(notes),
        parents=tuple(
            _trace(
                parent_path(artifact, parent),
                role=parent.role,
                recorded=parent.fingerprint,
                followed=followed,
                generation=generation + 1,
            )
            for parent in inputs
        ),
    )


def _indented(ancestor: Ancestor, depth: int) -> list[str]:
    lines = [f"{'  ' * depth}{ancestor}"]
    for parent in ancestor.parents:
        lines += _indented(parent, depth + 1)
    return lines
