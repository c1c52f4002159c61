"""A selection on disk: which sequences of which prefixes are kept, and what they weigh.

    DIR/selection.json                    settings, totals, thresholds, and per prefix what follows
    DIR/<nnnn>_<name>.indices.npy         (K,) int64: kept sequences of the prefix, ascending
    DIR/<nnnn>_<name>.weights.npy         (K,) float32: their weights; the mean over all prefixes is 1
    DIR/<nnnn>_<name>.values.npy          (K,) float64: what they are ranked by, -inf where nothing was scored
    DIR/<nnnn>_<name>.checksums.npy       (B,) a CRC-32 of each array for every 4,096 of the K
    DIR/<name>_refined-<digest>.bin/.idx  the view, unless the selection is index-only
    DIR/data_args.txt                     the blend for Megatron
    DIR/manifest.json                     parents, checksums; marks the selection complete

Format page: docs/formats.md.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint, digest_file
from megatron_miniplm.artifacts.manifest import Manifest, load_manifest
from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.artifacts.selected_arrays import (
    CHECKSUM_DTYPE,
    INDEX_DTYPE,
    VALUE_DTYPE,
    WEIGHT_DTYPE,
    CheckedArray,
    KeptLookup,
    check_header,
    num_blocks_of,
)
from megatron_miniplm.artifacts.selection_summary import checked_summary
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.runtime.hashing import uniforms

SELECTION = "selection.json"
FORMAT_VERSION = 3
#: Role of what the reference was trained on and the selection has asked about, in its manifest.
SEEN = "seen by the reference"
#: The arrays of a prefix; every one is a key of its entry in `selection.json`.
ARRAYS = ("indices", "weights", "values", "checksums")

_COPIES_STREAM = 0x636F7079
_REMEDY = "make the selection again"
_MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SelectedPrefix:
    """One prefix of a selection. Arrays are verified as they are read.

    Attributes:
        name: of the source prefix.
        path: of the source prefix.
        start: global id of its first sequence.
        num_source_sequences: before the selection.
        num_sequences, num_tokens: kept.
        weighted_tokens: sum of weight times tokens over the kept sequences.
        fingerprint: of the source prefix.
        indices_path, weights_path, values_path, checksums_path: the arrays.
        checksums_digest: of every byte of the last.
        view: prefix of the view; None in an index-only selection.
    """

    name: str
    path: Path
    start: int
    num_source_sequences: int
    num_sequences: int
    num_tokens: int
    weighted_tokens: float
    fingerprint: Fingerprint
    indices_path: Path
    weights_path: Path
    values_path: Path
    checksums_path: Path
    checksums_digest: Fingerprint
    view: Path | None

    def indices(self) -> np.ndarray:
        """Kept sequences, (num_sequences,) int64, ascending, mapped read-only; the first call reads them all.

        Raises:
            CorruptArtifactError: they are not what was written.
        """
        return self.checked_indices.whole()

    def weights(self) -> np.ndarray:
        """Their weights, (num_sequences,) float32; as `indices`."""
        return self._checked_weights.whole()

    def values(self) -> np.ndarray:
        """What they are ranked by, (num_sequences,) float64, -inf where nothing was scored; as `indices`."""
        return self._checked_values.whole()

    def look_up(self, sequences_S: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values and weights of some kept sequences; verifies the blocks that hold them, and no others.

        Raises:
            CorruptArtifactError: one of these blocks is damaged, or a sequence is not kept.
        """
        return self._lookup.find(sequences_S)

    @cached_property
    def _lookup(self) -> KeptLookup:
        return KeptLookup(self.checked_indices, self._checked_values, self._checked_weights)

    @cached_property
    def checked_indices(self) -> CheckedArray:
        return self._checked(self.indices_path, INDEX_DTYPE, "indices")

    def refuse_another(self, path: Path | str, found: Fingerprint) -> None:
        """Raise `FingerprintMismatchError` unless what lies at `path` now is what was selected from."""
        if found != self.fingerprint:
            raise FingerprintMismatchError(
                f"{self.indices_path.parent} was selected from {self.name} [{self.fingerprint[:SHORT_HEX]}], but "
                f"{path} is now [{found[:SHORT_HEX]}]: select again, or bring the old corpus back"
            )

    @cached_property
    def _checked_weights(self) -> CheckedArray:
        return self._checked(self.weights_path, WEIGHT_DTYPE, "weights")

    @cached_property
    def _checked_values(self) -> CheckedArray:
        return self._checked(self.values_path, VALUE_DTYPE, "values")

    @cached_property
    def _checksums_B(self) -> np.ndarray:
        path, num_blocks = self.checksums_path, num_blocks_of(self.num_sequences)
        num_header_bytes = check_header(path, CHECKSUM_DTYPE, num_blocks)
        if digest_file(path) != self.checksums_digest:
            raise CorruptArtifactError(f"{path} does not match its checksum in the manifest: {_REMEDY}")
        return np.fromfile(path, CHECKSUM_DTYPE, num_blocks, offset=num_header_bytes)

    def _checked(self, path: Path, dtype: np.dtype, name: str) -> CheckedArray:
        return CheckedArray(path, dtype, self.num_sequences, self._checksums_B[name].copy())


@dataclass(frozen=True, kw_only=True)
class Selection:
    """A finished selection.

    Attributes:
        directory: where it lies.
        manifest: its manifest.
        summary: what `selection.json` holds.
        prefixes: in the order that defines global ids.
    """

    directory: Path
    manifest: Manifest
    summary: dict[str, Any]
    prefixes: tuple[SelectedPrefix, ...]

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a finished selection, and compare `selection.json` with its checksum. The arrays are not opened.

        Raises:
            InputError: there is no selection.
            CorruptArtifactError: `selection.json` is not what was written, or cannot be understood.
        """
        if not directory.exists():
            raise InputError(f"{directory} does not exist: give a directory that difference-sampling wrote")
        manifest = load_manifest(directory)
        if manifest.kind != "selection":
            raise InputError(
                f"{directory} holds an artifact of kind {manifest.kind}: give a directory that difference-sampling "
                "wrote"
            )
        summary = _read_summary(directory / SELECTION, manifest)
        prefixes, start = [], 0
        for entry in summary["prefixes"]:
            if entry["checksums"] not in manifest.files:
                raise CorruptArtifactError(f"{directory}/manifest.json has no file {entry['checksums']!r}: {_REMEDY}")
            prefixes.append(_prefix(directory, entry, start, manifest.files))
            start += prefixes[-1].num_source_sequences
        return cls(directory=directory, manifest=manifest, summary=summary, prefixes=tuple(prefixes))

    @property
    def is_index_only(self) -> bool:
        return any(prefix.view is None for prefix in self.prefixes)


def _read_summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What `selection.json` holds, after its size, checksum and version were compared."""
    summary: dict[str, Any] = read_json(
        path, what="summary of the selection", max_bytes=_MAX_JSON_BYTES, remedy=_REMEDY
    )
    if (found := summary.get("format_version")) != FORMAT_VERSION:
        raise CorruptArtifactError(
            f"{path} has format version {found}, this release reads {FORMAT_VERSION}: select again from the same "
            "scores, which gives the same sequences, or use the release that wrote it"
        )
    if digest_file(path) != manifest.files.get(SELECTION, {}).get("blake2b"):
        raise CorruptArtifactError(f"{path} does not match its checksum in the manifest: {_REMEDY}")
    try:
        return checked_summary(summary)
    except ValueError as error:
        raise CorruptArtifactError(f"{path} is damaged ({error}): {_REMEDY}") from None


def _prefix(directory: Path, entry: Mapping[str, Any], start: int, files: Mapping[str, Any]) -> SelectedPrefix:
    """One entry of `prefixes`."""
    return SelectedPrefix(
        name=entry["name"],
        path=Path(os.path.normpath(directory / entry["path"])),
        start=start,
        weighted_tokens=entry["weighted_tokens"],
        fingerprint=entry["fingerprint"],
        indices_path=directory / entry["indices"],
        weights_path=directory / entry["weights"],
        values_path=directory / entry["values"],
        checksums_path=directory / entry["checksums"],
        checksums_digest=files[entry["checksums"]]["blake2b"],
        view=None if entry["view"] is None else directory / entry["view"],
        num_source_sequences=entry["num_source_sequences"],
        num_sequences=entry["num_sequences"],
        num_tokens=entry["num_tokens"],
    )


def copies_of(weight_N: np.ndarray, ids_N: np.ndarray, *, seed: int, epoch: int = 0) -> np.ndarray:
    """How often each sequence is repeated: floor(weight) times, and once more with the remaining probability.

    The expectation over seeds is the weight. The draw of a sequence depends on its global id, the seed and the epoch
    alone.

    Args:
        weight_N: finite, not negative.
        ids_N: global ids.

    Returns:
        (N,) int64.
    """
    whole_N = np.floor(weight_N)
    return (whole_N + (uniforms(ids_N, seed, _COPIES_STREAM, epoch) < weight_N - whole_N)).astype(np.int64)
