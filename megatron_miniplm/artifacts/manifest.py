"""The manifest beside every artifact: what it is, how much, made from what, with which settings and versions.

A directory artifact carries `manifest.json`; a Megatron prefix carries `<prefix>.manifest.json`. Manifests hold no
times and no absolute paths: the same command on the same inputs writes the same bytes, and a run directory can move.
Format page: docs/formats.md.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file
from megatron_miniplm.artifacts.reading import path_below, read_json
from megatron_miniplm.errors import CorruptArtifactError, InputError

FORMAT_VERSION = 1
DIRECTORY_MANIFEST = "manifest.json"
PREFIX_MANIFEST_SUFFIX = ".manifest.json"
PREFIX_KINDS = frozenset({"corpus", "view"})
#: Role of what the model behind scores was trained on.
TRAINING_DATA = "training data"
_MAKE_AGAIN = "make the artifact again"
#: Settings that readers compute with.
_SETTING_TYPES = {"json_key": (str,), "sequence": (str,), "vocab_size": (int,), "shard_index": (int,)}


@dataclass(frozen=True, kw_only=True)
class ArtifactInput:
    """One parent of an artifact.

    Attributes:
        role: what the parent was used as, such as `corpus`, `teacher_scores` or `model`.
        path: the parent's prefix or directory, relative to the directory that holds the manifest.
        fingerprint: the parent's fingerprint when it was used.
    """

    role: str
    path: str
    fingerprint: Fingerprint


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        kind: `corpus`, `view`, `views`, `tokenizer`, `scores`, `selection` or `split`.
        fingerprint: identity of the artifact's content.
        counts: totals, each key ending in its unit (`num_sequences`, `num_tokens`, `text_bytes`).
        settings: the flags that shaped the content; never the number of workers or ranks.
        versions: packages whose behaviour could change the content.
        inputs: the parents, in a stated order.
        files: checksums of the artifact's own files by name, relative to the manifest: `bytes` and `blake2b`.
    """

    kind: str
    fingerprint: Fingerprint
    counts: dict[str, int]
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    inputs: tuple[ArtifactInput, ...] = ()
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def write(self, artifact: Path) -> None:
        """Publish the manifest of a directory or prefix, atomically. Write it last: it marks the artifact complete.

        Raises:
            InputError: the manifest of a directory would replace that of a prefix of the same name.
        """
        if self.kind not in PREFIX_KINDS and is_prefix(artifact):
            raise InputError(f"{artifact} is the prefix of a .bin/.idx pair: give the {self.kind} another directory")
        write_json(manifest_path(artifact), asdict(self))


def manifest_path(artifact: Path) -> Path:
    """Where the manifest of a directory or of a Megatron prefix lies."""
    directory = artifact.is_dir() and not is_prefix(artifact)
    return artifact / DIRECTORY_MANIFEST if directory else prefix_manifest_path(artifact)


def prefix_manifest_path(prefix: Path) -> Path:
    return prefix.with_name(prefix.name + PREFIX_MANIFEST_SUFFIX)


def is_prefix(artifact: Path) -> bool:
    """Whether a path is a Megatron prefix; `GPTDataset` puts its index cache into a directory of the same name."""
    return bool(artifact.name) and artifact.with_name(artifact.name + ".idx").exists()


def require_prefix(artifact: Path) -> None:
    """Raise `InputError` where a path is no Megatron prefix."""
    if not is_prefix(artifact):
        raise InputError(f"{artifact}.idx does not exist: give the prefix of a .bin/.idx pair, without extension")


def load_manifest(artifact: Path) -> Manifest:
    """Read the manifest of a directory or prefix.

    Raises:
        InputError: there is none.
        CorruptArtifactError: it is not JSON, lacks a field, names a file that is not below the artifact, or has a
            format version that this release does not know.
    """
    path = manifest_path(artifact)
    if not _exists(path):
        raise InputError(f"{artifact} has no {path.name}: it is not a finished artifact of megatron-miniplm")
    values = read_json(path, what="manifest", remedy=_MAKE_AGAIN)
    if (found := values.get("format_version")) != FORMAT_VERSION:
        raise CorruptArtifactError(
            f"{path} has format version {found!r:.40}, this release reads {FORMAT_VERSION}: "
            f"use the release that wrote it, or {_MAKE_AGAIN}"
        )
    try:
        parents = tuple(ArtifactInput(**parent) for parent in values.pop("inputs", ()))
        manifest = Manifest(inputs=parents, **values)
        _check_types(manifest)
    except TypeError as error:
        raise CorruptArtifactError(f"{path} is not a valid manifest ({error}): {_MAKE_AGAIN}") from None
    for name in manifest.files:
        path_below(path.parent, name, named_by=path)
    return manifest


def _exists(path: Path) -> bool:
    """Whether there is something under a path; where that cannot be known, reading it says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def _check_types(manifest: Manifest) -> None:
    """Raise TypeError where a field that others compute with has another type than `Manifest` says."""
    texts = [manifest.kind, manifest.fingerprint]
    texts += [text for parent in manifest.inputs for text in (parent.role, parent.path, parent.fingerprint)]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("kind, fingerprint and the fields of inputs must be strings")
    if not all(isinstance(mapping, dict) for mapping in (manifest.counts, manifest.settings, manifest.versions)):
        raise TypeError("counts, settings and versions must be objects")
    if not all(map(_is_count, manifest.counts.values())):
        raise TypeError("counts must be integers from 0 to 2^63 - 1")
    if not all(isinstance(version, str) for version in manifest.versions.values()):
        raise TypeError("versions must be strings")
    for name, kinds in _SETTING_TYPES.items():
        if not isinstance(manifest.settings.get(name), (*kinds, type(None))):
            raise TypeError(f"the setting {name} must be {' or '.join(kind.__name__ for kind in kinds)}")
    if not isinstance(manifest.files, dict) or not all(map(_is_file_entry, manifest.files.values())):
        raise TypeError("every entry of files must have bytes, a count, and blake2b, a string")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _is_file_entry(entry: object) -> bool:
    return isinstance(entry, dict) and _is_count(entry.get("bytes")) and isinstance(entry.get("blake2b"), str)


def refuse_another(output_dir: Path, kind: str, fingerprint: Fingerprint) -> None:
    """Let a command write into a directory that is new or holds what it would write again.

    Raises:
        InputError: the directory holds another finished artifact.
    """
    if manifest_path(output_dir).exists() and load_manifest(output_dir).fingerprint != fingerprint:
        raise InputError(f"{output_dir} holds another {kind}: give another --output, or delete it")


def input_of(role: str, parent: Path, fingerprint: Fingerprint, *, relative_to: Path) -> ArtifactInput:
    """Describe a parent, with its path relative to the directory that will hold the manifest."""
    return ArtifactInput(role=role, path=os.path.relpath(parent, relative_to), fingerprint=fingerprint)


def checksum_of(path: Path) -> dict[str, Any]:
    """The `files` entry of one finished file."""
    return {"bytes": path.stat().st_size, "blake2b": digest_file(path)}


def verify_files(
    artifact: Path, manifest: Manifest, advance: Callable[[int], object] = lambda num_bytes: None
) -> list[str]:
    """Compare an artifact's files with the manifest's checksums; returns one message a fault.

    Args:
        advance: called with every number of bytes read.
    """
    faults = []
    directory = manifest_path(artifact).parent
    for name, expected in manifest.files.items():
        path = path_below(directory, name, named_by=manifest_path(artifact))
        try:
            if (size_bytes := path.stat().st_size) != expected["bytes"]:
                faults.append(f"{path} has {size_bytes} bytes, its manifest says {expected['bytes']}")
            elif digest_file(path, advance) != expected["blake2b"]:
                faults.append(f"{path} has changed since it was written: its checksum does not match the manifest")
        except FileNotFoundError:
            faults.append(f"{path} is missing")
        except OSError as error:
            faults.append(f"{path} cannot be read: {error.strerror}")
        except InputError as error:
            faults.append(str(error))
    return faults
