"""What a finished store of scores says of itself: its manifest, the checksums of all blocks, its fingerprint.

`artifacts.scores` explains the directory.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, write_array
from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_values
from megatron_miniplm.artifacts.leases import CLAIMS, EXPIRY_SECONDS
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, checksum_of, manifest_path
from megatron_miniplm.artifacts.npy_files import open_array
from megatron_miniplm.artifacts.score_blocks import CHECKSUM_DTYPE
from megatron_miniplm.artifacts.score_identity import IDENTITY
from megatron_miniplm.errors import CorruptArtifactError

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
    finished_at = manifest_path(directory).stat().st_mtime
    for leftover in directory.glob(f".*{TEMPORARY_SUFFIX}"):
        with suppress(OSError):  # another job may be finishing the same store right now: only old ones
            if finished_at - leftover.stat().st_mtime > EXPIRY_SECONDS:
                leftover.unlink()
    shutil.rmtree(directory / CLAIMS, ignore_errors=True)
