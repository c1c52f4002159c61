"""The tree from an artifact down to raw files and checkpoints, read from manifests."""

import os
from pathlib import Path

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.manifest import load_manifest, manifest_path
from megatron_miniplm.errors import InputError


def lineage_lines(artifact: Path, role: str = "", recorded: Fingerprint | None = None, depth: int = 0) -> list[str]:
    """One line an ancestor, indented by depth.

    A parent whose fingerprint is no longer the one that was used is marked `CHANGED`, one that cannot be found
    `not here`. A parent without a manifest, such as a raw text file or a checkpoint, ends its branch.
    """
    indent = "  " * depth
    label = f"{role}: " if role else ""
    try:
        manifest = load_manifest(artifact)
    except InputError:
        known = f" [{recorded[:SHORT_HEX]}]" if recorded else ""
        here = artifact.exists() or artifact.with_name(artifact.name + ".idx").exists()
        return [f"{indent}{label}{artifact}{known}" + ("" if here else " (not here)")]
    counts = ", ".join(f"{value:,} {name.removeprefix('num_')}" for name, value in manifest.counts.items())
    changed = " CHANGED since it was used" if recorded not in (None, manifest.fingerprint) else ""
    lines = [f"{indent}{label}{artifact} ({manifest.kind}: {counts}) [{manifest.fingerprint[:SHORT_HEX]}]{changed}"]
    directory = manifest_path(artifact).parent
    for parent in manifest.inputs:
        path = Path(_clean(directory / parent.path))
        lines += lineage_lines(path, parent.role, parent.fingerprint, depth + 1)
    return lines


def _clean(path: Path) -> str:
    """Resolve `..` without following symlinks, and prefer a path relative to the working directory."""
    normal = Path(os.path.normpath(path.absolute()))
    return str(normal.relative_to(Path.cwd())) if normal.is_relative_to(Path.cwd()) else str(normal)
