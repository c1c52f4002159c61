"""A directory of scores: blocks that appear whole, an identity that refuses strangers, a manifest when complete.

    DIR/identity.json          what is scored with what; written before the first block
    DIR/blocks/00000000.npy    one a block, shape (sequences of the block,), dtype SCORE_DTYPE
    DIR/manifest.json          checksums of all blocks; written after the last

8 bytes a sequence. Format page: docs/formats.md.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, write_array, write_json
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, digest_values
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, checksum_of, load_manifest, manifest_path
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError, NonFiniteScoreError

#: `nll`: sum over the scored tokens, nats. `num_tokens`: scored tokens; 0 where there was nothing to predict.
SCORE_DTYPE = np.dtype([("nll", "<f4"), ("num_tokens", "<i4")])
IDENTITY = "identity.json"


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """The sequences of all prefixes in order, cut into blocks of equal size; the last may be shorter."""

    num_sequences: int
    block_sequences: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_sequences // self.block_sequences)

    def sequences(self, block: int) -> range:
        """Global ids of a block's sequences."""
        start = block * self.block_sequences
        return range(start, min(start + self.block_sequences, self.num_sequences))


class ScoreStore:
    """Scores of one model over one corpus.

    Attributes:
        directory: where it lies.
        identity: `model`, `corpus` (a list of prefixes in order) and `settings`; equal for every run that may add
            blocks.
        plan: how the sequences are cut into blocks.
    """

    def __init__(self, directory: Path, identity: dict[str, Any]) -> None:
        self.directory = directory
        self.identity = identity
        self.plan = BlockPlan(
            num_sequences=sum(prefix["num_sequences"] for prefix in identity["corpus"]),
            block_sequences=identity["settings"]["block_sequences"],
        )

    @classmethod
    def create_or_resume(cls, directory: Path, identity: dict[str, Any]) -> Self:
        """Start a store, or continue one that was started with the same identity. One without a block is started anew.

        Raises:
            FingerprintMismatchError: the directory holds scores of something else.
        """
        path = directory / IDENTITY
        if path.exists() and any((directory / "blocks").glob("*.npy")):
            store = cls.open(directory)
            for part in ("corpus", "model", "settings"):
                if store.identity[part] != identity[part]:
                    difference = _difference(store.identity[part], identity[part])
                    raise FingerprintMismatchError(
                        f"{directory} holds scores of another {part} ({difference}): "
                        "give another --miniplm-scores directory, or delete this one"
                    )
            return store
        write_json(path, identity)
        return cls(directory, identity)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a started or finished store.

        Raises:
            InputError: not a directory of scores.
            CorruptArtifactError: its identity cannot be read.
        """
        path = directory / IDENTITY
        try:
            return cls(directory, json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{directory} is not a directory of scores: it has no {IDENTITY}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptArtifactError(f"{path} is damaged ({error!r}): score into a new directory") from None

    def block_path(self, block: int) -> Path:
        return self.directory / "blocks" / f"{block:08d}.npy"

    def missing_blocks(self) -> list[int]:
        """Blocks that have no file yet, in order; one directory listing."""
        present = {path.name for path in (self.directory / "blocks").glob("*.npy")}
        return [block for block in range(self.plan.num_blocks) if self.block_path(block).name not in present]

    def write_block(self, block: int, nll_N: np.ndarray, num_tokens_N: np.ndarray) -> None:
        """Publish one block, atomically.

        Raises:
            NonFiniteScoreError: NaN or infinity; nothing is written.
        """
        scores = np.empty(len(nll_N), SCORE_DTYPE)
        scores["nll"], scores["num_tokens"] = nll_N, num_tokens_N
        finite_N = np.isfinite(scores["nll"])
        if not finite_N.all():
            first = int(np.argmin(finite_N))
            raise NonFiniteScoreError(
                f"sequence {self.plan.sequences(block)[first]} has an NLL of {nll_N[first]}: "
                "the model or its precision is broken; nothing of its block was written"
            )
        write_array(self.block_path(block), scores)

    def read_block(self, block: int) -> np.ndarray:
        """One block, (sequences,) of SCORE_DTYPE.

        Raises:
            CorruptArtifactError: the file does not hold what the plan says.
        """
        path = self.block_path(block)
        try:
            scores = np.load(path)
        except (ValueError, EOFError, OSError) as error:
            raise CorruptArtifactError(f"{path} cannot be read ({error}): delete it and score again") from None
        if scores.dtype != SCORE_DTYPE or scores.shape != (len(self.plan.sequences(block)),):
            raise CorruptArtifactError(
                f"{path} holds {scores.shape} of {scores.dtype}, expected ({len(self.plan.sequences(block))},) of "
                f"{SCORE_DTYPE}: delete it and score again"
            )
        return scores

    def blocks(self) -> Iterator[np.ndarray]:
        """All blocks in order, one in memory at a time."""
        return map(self.read_block, range(self.plan.num_blocks))

    def read_all(self) -> np.ndarray:
        """Scores of all sequences, (num_sequences,) of SCORE_DTYPE."""
        return np.concatenate([np.empty(0, SCORE_DTYPE), *self.blocks()])

    def require_complete(self) -> Manifest:
        """The manifest of a finished store.

        Raises:
            InputError: blocks are missing.
        """
        missing = self.missing_blocks()
        if missing or not manifest_path(self.directory).exists():
            raise InputError(
                f"{self.directory} is incomplete: {len(missing)} of {self.plan.num_blocks} blocks are missing "
                f"(first: {missing[0] if missing else 'none, only the manifest'}): run the same scoring command again"
            )
        return load_manifest(self.directory)

    def finish(self, inputs: tuple[ArtifactInput, ...], versions: dict[str, str]) -> Manifest:
        """Check every block and write the manifest; call it on one rank, once no block is missing."""
        for leftover in (self.directory / "blocks").glob(f".*{TEMPORARY_SUFFIX}"):
            leftover.unlink(missing_ok=True)  # of a killed process
        files, num_tokens = {}, 0
        for block, scores in enumerate(self.blocks()):
            path = self.block_path(block)
            files[str(path.relative_to(self.directory))] = checksum_of(path)
            num_tokens += int(scores["num_tokens"].sum(dtype=np.int64))
        manifest = Manifest(
            kind="scores",
            fingerprint=digest_values(self.identity, files),
            counts={"num_sequences": self.plan.num_sequences, "num_tokens": num_tokens},
            settings=self.identity["settings"],
            versions=versions,
            inputs=inputs,
            files=files,
        )
        manifest.write(self.directory)
        return manifest


def _difference(there: Any, here: Any) -> str:
    """The first value that differs, in a few words."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(key for key in {**there, **here} if there.get(key) != here.get(key))
        return f"{key}: {_difference(there.get(key), here.get(key))}"
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return next(_difference(a, b) for a, b in zip(there, here, strict=True) if a != b)
    if isinstance(there, list) and isinstance(here, list):
        return f"{len(there)} prefixes there, {len(here)} here"
    return f"{_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    return value[:SHORT_HEX] if isinstance(value, str) and len(value) == 32 else str(value)
