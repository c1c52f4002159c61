"""`identity.json` of a directory of scores: what is scored with what. Runs with another one do not mix their blocks."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, write_array
from megatron_miniplm.artifacts.directories import remove_dead_temporaries
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint, digest_values
from megatron_miniplm.artifacts.leases import CLAIMS, EXPIRY_SECONDS
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, checksum_of, manifest_path
from megatron_miniplm.artifacts.reading import open_array, read_json
from megatron_miniplm.artifacts.score_blocks import CHECKSUM_DTYPE, UNBOUND, BlockPlan, Seal
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError

FORMAT_VERSION = 3
#: Format 2 has no identity in its blocks: it is read, and nothing is added to it.
READABLE_VERSIONS = (2, FORMAT_VERSION)
IDENTITY = "identity.json"
#: Settings that readers compute with, where they are there.
_SETTING_TYPES = {"quantity": (str,), "sample_fraction": (int, float), "sample_seed": (int,)}
#: Settings of `score-corpus` and the flags that set them.
_FLAGS = {
    "block_sequences": "--block-sequences",
    "context_tokens": "--seq-length",
    "overlap_tokens": "--window-overlap",
    "sample_fraction": "--sample-fraction",
    "sample_seed": "--sample-seed",
}


def identity_bytes(identity: dict[str, Any]) -> bytes:
    """The file of an identity."""
    values = {"format_version": FORMAT_VERSION, **identity}
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def seal_of(identity: dict[str, Any], format_version: int) -> Seal:
    """What every block of a store ends in."""
    return UNBOUND if format_version < FORMAT_VERSION else Seal.of(digest_values("score identity", identity))


def read_identity(directory: Path) -> tuple[dict[str, Any], int]:
    """The identity of a store, and its format version.

    Raises:
        InputError: not a directory of scores.
        CorruptArtifactError: its identity cannot be read, or is of another format.
    """
    path = directory / IDENTITY
    if not path.exists():
        raise InputError(f"{directory} is not a directory of scores: it has no {IDENTITY}")
    identity = read_json(path, what="identity of scores", remedy="score into a new directory")
    found = identity.pop("format_version", 1)
    if found not in READABLE_VERSIONS:
        raise CorruptArtifactError(
            f"{directory} holds scores in format {str(found)[:40]}, this release reads 2 and {FORMAT_VERSION}: use the "
            "release that wrote them, or score into a new directory"
        )
    try:
        _check(identity)
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}): score into a new directory") from None
    return identity, found


def _check(identity: dict[str, Any]) -> None:
    """Raise ValueError unless every field that others compute with is what docs/formats.md says."""
    for name, kind in (("model", dict), ("corpus", list), ("settings", dict)):
        if not isinstance(identity.get(name), kind):
            raise ValueError(f"{name} must be {'a list' if kind is list else 'an object'}")
    for position, prefix in enumerate(identity["corpus"]):
        if not isinstance(prefix, dict) or not all(
            isinstance(prefix.get(name), str) for name in ("name", "fingerprint")
        ):
            raise ValueError(f"prefix {position} of corpus must have a name, a fingerprint and num_sequences")
    for name, kinds in _SETTING_TYPES.items():
        if not isinstance(identity["settings"].get(name), (*kinds, type(None))):
            raise ValueError(f"the setting {name} must be {' or '.join(kind.__name__ for kind in kinds)}")
    BlockPlan.of(identity)


def require_equal(directory: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on with a directory of another identity.

    Raises:
        FingerprintMismatchError: names the first value that differs.
    """
    for part in ("corpus", "model", "settings"):
        if there[part] != here[part]:
            raise FingerprintMismatchError(
                f"{directory} holds scores of another {part} ({first_difference(there[part], here[part])}): "
                "give another --scores directory, or delete this one"
            )


def first_difference(there: Any, here: Any) -> str:
    """The first value in which two records differ, in a few words; a setting by its flag."""
    if isinstance(there, dict) and isinstance(here, dict):
        # The size of a block follows from the other settings unless it was given: one of these is the reason.
        keys = sorted({**there, **here}, key=lambda key: key == "block_sequences")
        key = next(key for key in keys if there.get(key) != here.get(key))
        return f"{_FLAGS.get(key, key)}: {first_difference(there.get(key), here.get(key))}"
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return next(first_difference(a, b) for a, b in zip(there, here, strict=True) if a != b)
    if isinstance(there, list) and isinstance(here, list):
        return f"{len(there)} prefixes there, {len(here)} here"
    return f"{_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    return value[:SHORT_HEX] if isinstance(value, str) and len(value) == 32 else str(value)


BLOCKS = "blocks"
CHECKSUMS = "checksums.npy"
COUNTS = ("num_sequences", "num_scored_sequences", "num_tokens")
RUN_AGAIN = "run the same scoring command again"


def publish_manifest(
    directory: Path,
    identity: dict[str, Any],
    checksums_B: np.ndarray,
    counts: tuple[int, int, int],
    *,
    inputs: tuple[ArtifactInput, ...],
    versions: dict[str, str],
) -> Manifest:
    """Write the checksums of all blocks, then the manifest: the same bytes from every job that does.

    Args:
        counts: in the order of COUNTS.
    """
    write_array(directory / CHECKSUMS, checksums_B)
    files = {name: checksum_of(directory / name) for name in (IDENTITY, CHECKSUMS)}
    manifest = Manifest(
        kind="scores",
        fingerprint=fingerprint_of(directory, identity, files),
        counts=dict(zip(COUNTS, counts, strict=True)),
        settings=identity["settings"],
        versions=versions,
        inputs=inputs,
        files=files,
    )
    manifest.write(directory)
    return manifest


def contradictions(directory: Path, identity: dict[str, Any], manifest: Manifest) -> list[str]:
    """Whether counts, corpora and fingerprint of a manifest are those of the store; one message per fault.

    Raises:
        CorruptArtifactError: the manifest does not name the checksums.
    """
    faults = []
    if lacking := [name for name in COUNTS if name not in manifest.counts]:
        faults.append(f"{manifest_path(directory)} has no count {lacking[0]}: {RUN_AGAIN}")
    corpora = [parent.fingerprint for parent in manifest.inputs if parent.role == "corpus"]
    if corpora != [prefix["fingerprint"] for prefix in identity["corpus"]]:
        faults.append(f"{manifest_path(directory)} names other corpora than {IDENTITY}: {RUN_AGAIN}")
    if manifest.fingerprint != (expected := fingerprint_of(directory, identity, manifest.files)):
        faults.append(f"{directory} has fingerprint {expected}, its manifest says {manifest.fingerprint}: {RUN_AGAIN}")
    return faults


def fingerprint_of(directory: Path, identity: dict[str, Any], files: dict[str, dict[str, Any]]) -> Fingerprint:
    """Identity of the scores, from the manifest's `files`."""
    if CHECKSUMS not in files:
        raise CorruptArtifactError(f"{manifest_path(directory)} names no {CHECKSUMS}: {RUN_AGAIN}")
    return digest_values("scores", identity, files[CHECKSUMS]["blake2b"])


def load_checksums(directory: Path, num_blocks: int) -> np.ndarray:
    """The checksums of all blocks, (num_blocks,) of CHECKSUM_DTYPE."""
    return np.array(
        open_array(
            directory / CHECKSUMS,
            what="checksums of all blocks",
            dtype=CHECKSUM_DTYPE,
            shape=(num_blocks,),
            remedy=f"delete it and {RUN_AGAIN}",
        )
    )


def remove_leftovers(directory: Path) -> None:
    """Remove what dead processes have left in a store that has just been finished, claims included."""
    for leftover in (directory / BLOCKS).glob(f".*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)  # of a killed process, or of one whose block another has published
    remove_dead_temporaries(directory)
    finished_at = manifest_path(directory).stat().st_mtime
    for leftover in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):  # another job may be writing here right now: only old ones
            if finished_at - leftover.stat().st_mtime > EXPIRY_SECONDS:
                leftover.unlink()
    shutil.rmtree(directory / CLAIMS, ignore_errors=True)
