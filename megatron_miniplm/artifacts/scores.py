"""A directory of scores: blocks that appear whole and once, an identity that refuses strangers, a manifest at the end.

    DIR/identity.json          what is scored with what; written before the first block
    DIR/blocks/00000000.npy    one per block, with its own checksum and the identity's digest (`artifacts.score_blocks`)
    DIR/claims/                who works on which block (`artifacts.leases`); gone when complete
    DIR/checksums.npy          those of all blocks; written after the last
    DIR/manifest.json          counts, parents, checksums of identity.json and checksums.npy; marks the store complete

Some 8 bytes a sequence. Format page: docs/formats.md.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from megatron_miniplm.artifacts.atomic import usable, write_once
from megatron_miniplm.artifacts.directories import temporaries_kept
from megatron_miniplm.artifacts.leases import in_flight
from megatron_miniplm.artifacts.manifest import (
    ArtifactInput,
    Manifest,
    load_manifest,
    manifest_path,
    verify_files,
)
from megatron_miniplm.artifacts.score_blocks import (
    CHECKSUM_DTYPE,
    NOT_SCORED,
    REMEDY,
    SCORE_DTYPE,
    BlockPlan,
    block_name,
    encode_block,
    read_block_into,
    wrong_size,
)
from megatron_miniplm.artifacts.score_records import (
    BLOCKS,
    CHECKSUMS,
    FORMAT_VERSION,
    IDENTITY,
    RUN_AGAIN,
    contradictions,
    identity_bytes,
    load_checksums,
    publish_manifest,
    read_identity,
    remove_leftovers,
    require_equal,
    seal_of,
)
from megatron_miniplm.errors import CorruptArtifactError, InputError, NonFiniteScoreError

__all__ = ["NOT_SCORED", "PREDICTED_DIFFERENCE", "SCORE_DTYPE", "BlockPlan", "ScoreStore"]

#: `settings.quantity` of what `fit-proxy` writes; scores have no such setting.
PREDICTED_DIFFERENCE = "predicted difference"


class ScoreStore:
    """Scores of one model over one corpus.

    Attributes:
        directory: where it lies.
        identity: `model`, `corpus` (a list of prefixes in order) and `settings`; equal for every run that may add
            blocks.
        format_version: of the store on disk.
        plan: how the sequences are cut into blocks.
        seal: what every block ends in.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], format_version: int = FORMAT_VERSION) -> None:
        self.directory = directory
        self.identity = identity
        self.format_version = format_version
        self.plan = BlockPlan.of(identity)
        self._blocks = directory / BLOCKS
        self.seal = seal_of(identity, format_version)
        self._checked_identity = b""
        self._recorded_B: np.ndarray | None = None  # of the manifest, once `require_complete` has vouched for them

    @classmethod
    def create_or_resume(cls, directory: Path, identity: dict[str, Any]) -> Self:
        """Start a store, or continue one that was started with the same identity.

        One without a block, on which nobody works, is started anew. Any number of processes may call this at once: one
        identity wins, and all others must be equal to it. A block that somebody publishes for the identity that lost
        is refused when it is read.

        Raises:
            FingerprintMismatchError: the directory holds scores of something else.
            InputError: it cannot be written, or its blocks would be too many.
            CorruptArtifactError: it is an unfinished store of an older format.
        """
        path = directory / IDENTITY
        try:
            BlockPlan.of(identity)
        except ValueError as error:
            raise InputError(f"{directory} cannot be made ({error}): give another --block-sequences") from None
        with usable(directory):
            directory.mkdir(parents=True, exist_ok=True)
            if path.exists():
                store = cls.open(directory)
                in_use = store._published_B().any() or any(holder.alive for holder in in_flight(directory))
                is_ours = store.identity == identity and store.format_version == FORMAT_VERSION
                if not in_use and not is_ours:
                    path.unlink(missing_ok=True)
            with temporaries_kept(directory):
                write_once(path, identity_bytes(identity))
        store = cls.open(directory)
        require_equal(directory, store.identity, identity)
        if store.format_version != FORMAT_VERSION and store.missing_blocks():
            raise CorruptArtifactError(
                f"{directory} is an unfinished store in format {store.format_version}, to which this release adds "
                "nothing: finish it with the release that began it, or score into a new directory"
            )
        return store

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a started or finished store.

        Raises:
            InputError: not a directory of scores.
            CorruptArtifactError: its identity cannot be read, or is of another format.
        """
        return cls(directory, *read_identity(directory))

    @property
    def quantity(self) -> str:
        """What `nll` is: `NLL`, or PREDICTED_DIFFERENCE (a token's, times the number of tokens)."""
        return self.identity["settings"].get("quantity", "NLL")

    def block_path(self, block: int) -> Path:
        return self.directory / BLOCKS / block_name(block)

    def has_block(self, block: int) -> bool:
        """Whether a block is published. On NFS the answer may be some seconds old."""
        return self.block_path(block).exists()

    def published_blocks(self) -> list[int]:
        """Blocks that have a file, in order; one directory listing."""
        return np.flatnonzero(self._published_B()).tolist()

    def missing_blocks(self) -> list[int]:
        """Blocks that have no file yet, in order; one directory listing."""
        return np.flatnonzero(~self._published_B()).tolist()

    def write_block(self, block: int, nll_N: np.ndarray, num_tokens_N: np.ndarray) -> bool:
        """Publish one block, unless it is there.

        Args:
            num_tokens_N: NOT_SCORED for a sequence that was left out, whose NLL must be 0.

        Returns:
            Whether it was published; False where another process was first, whose scores stay.

        Raises:
            NonFiniteScoreError: NaN or infinity; nothing is written.
            FingerprintMismatchError: the directory has been started anew for something else.
            InputError: it cannot be written; nothing half-written is visible.
        """
        assert self.format_version == FORMAT_VERSION
        assert len(nll_N) == len(num_tokens_N) == len(self.plan.sequences(block))
        scores = np.empty(len(nll_N), SCORE_DTYPE)
        scores["nll"], scores["num_tokens"] = nll_N, num_tokens_N
        finite_N = np.isfinite(scores["nll"])
        if not finite_N.all():
            first = int(np.argmin(finite_N))
            raise NonFiniteScoreError(
                f"sequence {self.plan.sequences(block)[first]} has an NLL of {nll_N[first]}: "
                "the model or its precision is broken; nothing of its block was written"
            )
        assert (scores["num_tokens"] >= NOT_SCORED).all()
        assert not scores["nll"][scores["num_tokens"] == NOT_SCORED].any()
        with usable(self.directory):
            self._check_identity()
            (self.directory / BLOCKS).mkdir(exist_ok=True)
            return write_once(self.block_path(block), encode_block(scores, self.seal))

    def read_block(self, block: int) -> np.ndarray:
        """One block, (sequences,) of SCORE_DTYPE.

        Raises:
            CorruptArtifactError: the file does not hold what the plan and its checksum say.
        """
        return self.read(self.plan.sequences(block))

    def read(self, sequences: range) -> np.ndarray:
        """Scores of a run of sequences by global id, (sequences,) of SCORE_DTYPE; reads the blocks that hold them.

        Raises:
            CorruptArtifactError: a file does not hold what the plan and its checksum say.
        """
        assert sequences.step == 1
        assert 0 <= sequences.start <= sequences.stop <= self.plan.num_sequences
        scores = np.empty(len(sequences), SCORE_DTYPE)
        with self._blocks_directory() as directory:
            for block in self.plan.blocks_of(sequences):
                there = self.plan.sequences(block)
                start, stop = max(there.start, sequences.start), min(there.stop, sequences.stop)
                wanted = scores[start - sequences.start : stop - sequences.start]
                if len(wanted) == len(there):
                    self._read_into(wanted, block, directory)
                else:  # the first and the last may be wanted in part, but a checksum covers all
                    whole = np.empty(len(there), SCORE_DTYPE)
                    self._read_into(whole, block, directory)
                    wanted[:] = whole[start - there.start : stop - there.start]
        return scores

    def blocks(self) -> Iterator[np.ndarray]:
        """All blocks in order, one in memory at a time."""
        return map(self.read_block, range(self.plan.num_blocks))

    def read_all(self) -> np.ndarray:
        """Scores of all sequences, (num_sequences,) of SCORE_DTYPE."""
        return self.read(range(self.plan.num_sequences))

    def require_complete(self) -> Manifest:
        """The manifest of a finished store. From then on, what is read must have the checksums that it stands for.

        Lists the directory and compares sizes; contents are checked when they are read, all of them by `verify`.

        Raises:
            InputError: blocks are missing.
            CorruptArtifactError: a file of the store is not what the manifest or the plan says.
        """
        missing = self.missing_blocks()
        if missing or not manifest_path(self.directory).exists():
            raise InputError(
                f"{self.directory} is incomplete: {len(missing)} of {self.plan.num_blocks} blocks are missing "
                f"(first: {missing[0] if missing else 'none, only the manifest'}): {RUN_AGAIN}"
            )
        manifest = load_manifest(self.directory)
        _raise_first([*self.manifest_faults(manifest), *self._size_faults()])
        self._recorded_B = load_checksums(self.directory, self.plan.num_blocks)
        return manifest

    def manifest_faults(self, manifest: Manifest) -> list[str]:
        """Whether identity, checksums and manifest belong together; one message per fault."""
        faults = [f"{fault}: {RUN_AGAIN}" for fault in verify_files(self.directory, manifest)]
        return faults or self.fingerprint_faults(manifest)

    def fingerprint_faults(self, manifest: Manifest) -> list[str]:
        """Whether counts, corpora and fingerprint are those of the identity and of the checksums that it names."""
        return contradictions(self.directory, self.identity, manifest)

    def verify(self, advance: Callable[[int], object] = lambda num_bytes: None) -> dict[int, str]:
        """Read every published block; about 1 GB/s where they are in the page cache.

        Args:
            advance: called with every number of bytes read, `num_bytes` in all.

        Returns:
            What is wrong, by block; a block that is not published is not wrong. Also blocks whose own checksum is right
            but not the one that was recorded when the store was finished.
        """
        recorded_B = (
            load_checksums(self.directory, self.plan.num_blocks) if (self.directory / CHECKSUMS).exists() else None
        )
        faults = {}
        with self._blocks_directory() as directory:
            for block in self.published_blocks():
                scores = np.empty(len(self.plan.sequences(block)), SCORE_DTYPE)
                try:
                    self._read_into(scores, block, directory, recorded_B)
                except CorruptArtifactError as error:
                    faults[block] = str(error)
                advance(self.block_bytes(block))
        return faults

    @property
    def num_bytes(self) -> int:
        """Size of all blocks, published or not."""
        if not self.plan.num_blocks:
            return 0
        last = self.plan.num_blocks - 1
        return last * self.block_bytes(0) + self.block_bytes(last)

    def block_bytes(self, block: int) -> int:
        """Size of a block's file."""
        return self.plan.block_bytes(block, self.seal.num_bytes)

    @property
    def has_manifest(self) -> bool:
        """Whether somebody has finished it."""
        return manifest_path(self.directory).exists()

    def finish(self, inputs: tuple[ArtifactInput, ...], versions: dict[str, str]) -> Manifest:
        """Check every block and write the manifest, once no block is missing.

        Jobs that finish at the same time write the same bytes. What dead processes left is removed, claims included.

        Raises:
            CorruptArtifactError: blocks are damaged or of another identity; the store stays unfinished.
            FingerprintMismatchError: the directory has been started anew for something else.
        """
        checksums_B = np.zeros(self.plan.num_blocks, CHECKSUM_DTYPE)
        num_scored = num_tokens = 0
        faults: list[str] = []
        self._recorded_B = None
        with self._blocks_directory() as directory:
            for block in range(self.plan.num_blocks):
                scores = np.empty(len(self.plan.sequences(block)), SCORE_DTYPE)
                try:
                    checksums_B[block] = self._read_into(scores, block, directory)
                except CorruptArtifactError as error:
                    faults.append(str(error))
                    continue
                scored_N = scores["num_tokens"] != NOT_SCORED
                num_scored += int(scored_N.sum())
                num_tokens += int(scores["num_tokens"].sum(where=scored_N, dtype=np.int64))
        _raise_first(faults)
        with usable(self.directory), temporaries_kept(self.directory):
            self._check_identity()
            counts = (self.plan.num_sequences, num_scored, num_tokens)
            manifest = publish_manifest(
                self.directory, self.identity, checksums_B, counts, inputs=inputs, versions=versions
            )
        remove_leftovers(self.directory)
        return manifest

    def _check_identity(self) -> None:
        """Raise where another run has started the directory anew; the same bytes are compared once."""
        path = self.directory / IDENTITY
        if not path.exists() or (found := path.read_bytes()) != self._checked_identity:
            require_equal(self.directory, read_identity(self.directory)[0], self.identity)
            self._checked_identity = found

    def _read_into(self, scores_N: np.ndarray, block: int, directory: int, recorded_B: np.ndarray | None = None) -> int:
        """Read one block; returns its checksum, which must be the recorded one if there is any."""
        checksum = read_block_into(scores_N, self._blocks, block_name(block), directory, self.seal)
        recorded_B = self._recorded_B if recorded_B is None else recorded_B
        if recorded_B is not None and checksum != recorded_B[block]:
            raise CorruptArtifactError(
                f"{self.block_path(block)} is whole, but not the block that the store was finished with (its checksum "
                f"is {checksum:08x}, {CHECKSUMS} says {recorded_B[block]:08x}): {REMEDY}"
            )
        return checksum

    def _published_B(self) -> np.ndarray:
        """Whether each block has a file, bool."""
        published_B = np.zeros(self.plan.num_blocks, np.bool_)
        try:
            with os.scandir(self.directory / BLOCKS) as entries:
                for entry in entries:
                    stem = entry.name.removesuffix(".npy")
                    if stem.isdecimal() and int(stem) < len(published_B) and entry.name == block_name(int(stem)):
                        published_B[int(stem)] = True
        except FileNotFoundError:
            pass  # before the first block
        return published_B

    def _size_faults(self) -> list[str]:
        faults = []
        with self._blocks_directory() as directory:
            for block in range(self.plan.num_blocks):
                size_bytes = os.stat(block_name(block), dir_fd=directory).st_size
                if size_bytes != (expected_bytes := self.block_bytes(block)):
                    faults.append(wrong_size(self.block_path(block), size_bytes, expected_bytes))
        return faults

    @contextmanager
    def _blocks_directory(self) -> Iterator[int]:
        """A descriptor of the directory of the blocks; before the first block of that above, which has none either."""
        path = self.directory / BLOCKS
        directory = os.open(path if path.is_dir() else self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield directory
        finally:
            os.close(directory)


def is_score_store(artifact: Path) -> bool:
    """Whether a path is a directory of scores, started or finished."""
    return (artifact / IDENTITY).is_file()


def _raise_first(faults: list[str]) -> None:
    """Raise CorruptArtifactError with the first of several faults, if there is one."""
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CorruptArtifactError(f"{faults[0]}{more}")
