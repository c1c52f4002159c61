"""Finished blocks of generated sequences: a directory beside the output, one file a block, whole and once.

    PREFIX.parts/identity.json     what is generated from what; written before the first block
    PREFIX.parts/00000000.part     one per block: lengths, tokens, digest of the identity, checksum
    PREFIX.parts/claims/           who works on which block (`artifacts.leases`)

The directory is removed once the corpus is put together. A part holds two `.npy` (format 1.0): lengths (N, 2) int32, of
the prompt and of all tokens of each sequence of the block; tokens (T,) of the corpus's dtype, one sequence after the
other. An empty sequence has lengths 0, 0. Then follow the 16 bytes of `digest("parts", identity)`, which bind the part
to its directory, and a CRC-32 of all bytes before it, little-endian.
"""

import io
import json
import math
import os
import shutil
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, usable, write_once
from megatron_miniplm.artifacts.fingerprint import DIGEST_BYTES, SHORT_HEX, Fingerprint, digest_values
from megatron_miniplm.artifacts.leases import CLAIMS
from megatron_miniplm.artifacts.manifest import prefix_manifest_path
from megatron_miniplm.artifacts.reading import open_regular, read_header, read_json
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.artifacts.score_records import first_difference
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError

DIRECTORY_SUFFIX = ".parts"
IDENTITY = "identity.json"
_FORMAT_VERSION = 2  # 1 had no digest in its parts
_PART_SUFFIX = ".part"
_LENGTH_DTYPE = np.dtype("<i4")
_CHECKSUM_BYTES = 4


def parts_directory(output_prefix: Path) -> Path:
    return output_prefix.with_name(output_prefix.name + DIRECTORY_SUFFIX)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The sequences of one block.

    Attributes:
        lengths_N2: tokens of the prompt, and of prompt and continuation, int32.
        tokens_T: of all sequences, one after the other, in the corpus's dtype.
    """

    lengths_N2: np.ndarray
    tokens_T: np.ndarray

    @classmethod
    def of(cls, prompts: list[np.ndarray], continuations: list[np.ndarray], token_dtype: np.dtype) -> Self:
        lengths = [[len(prompt), len(prompt) + len(new)] for prompt, new in zip(prompts, continuations, strict=True)]
        pieces = [piece for pair in zip(prompts, continuations, strict=True) for piece in pair]
        return cls(
            lengths_N2=np.array(lengths, _LENGTH_DTYPE).reshape(-1, 2),
            tokens_T=np.concatenate([np.zeros(0, token_dtype), *(piece.astype(token_dtype) for piece in pieces)]),
        )

    def sequences(self) -> list[np.ndarray]:
        """The tokens of each sequence."""
        return np.split(self.tokens_T, np.cumsum(self.lengths_N2[:, 1])[:-1])

    def to_bytes(self, identity_digest: Fingerprint) -> bytes:
        """The file of this part."""
        stream = io.BytesIO()
        for array in (self.lengths_N2, self.tokens_T):
            np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
        stream.write(bytes.fromhex(identity_digest))
        data = stream.getvalue()
        return data + zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


def read_part(stream: BinaryIO, *, num_sequences: int, token_dtype: np.dtype, identity_digest: Fingerprint) -> Part:
    """Read a file; its size is compared with its lengths before its tokens are read.

    Raises:
        ValueError: it is cut off, has changed, or is a part of something else.
    """
    lengths_N2 = _read_array(stream, _LENGTH_DTYPE, (num_sequences, 2))
    num_tokens = int(lengths_N2[:, 1].sum(dtype=np.int64))
    if (lengths_N2[:, 0] < 0).any() or (lengths_N2[:, 1] < lengths_N2[:, 0]).any():
        raise ValueError("a sequence is shorter than its prompt")
    tokens_T = _read_array(stream, token_dtype, (num_tokens,))
    seal = stream.read(DIGEST_BYTES + _CHECKSUM_BYTES + 1)
    signed_bytes = stream.tell() - _CHECKSUM_BYTES
    stream.seek(0)
    if zlib.crc32(stream.read(signed_bytes)).to_bytes(_CHECKSUM_BYTES, "little") != seal[DIGEST_BYTES:]:
        raise ValueError("its checksum does not match")
    if (found := seal[:DIGEST_BYTES].hex()) != identity_digest:
        raise ValueError(f"it was generated under the identity {found[:SHORT_HEX]}, not {identity_digest[:SHORT_HEX]}")
    return Part(lengths_N2=lengths_N2, tokens_T=tokens_T)


def _read_array(stream: BinaryIO, dtype: np.dtype, expected: tuple[int, ...]) -> np.ndarray:
    found, _ = read_header(stream, dtype)
    if found != expected:
        raise ValueError(f"it holds an array of shape {found}, expected {expected}")
    num_bytes = math.prod(expected) * dtype.itemsize
    if os.fstat(stream.fileno()).st_size - stream.tell() < num_bytes:
        raise ValueError("it is cut off")
    return np.frombuffer(stream.read(num_bytes), dtype).reshape(expected)


class Parts:
    """The parts of one output corpus.

    Attributes:
        directory: where they lie.
        identity: equal for every run that may add parts.
        plan: how the chosen sequences are cut into blocks, by their positions among the chosen ones.
        token_dtype: of the tokens.
    """

    def __init__(self, directory: Path, identity: dict[str, Any], plan: BlockPlan, token_dtype: np.dtype) -> None:
        self.directory = directory
        self.identity = identity
        self.plan = plan
        self.token_dtype = token_dtype
        self.identity_digest = digest_values("parts", identity)
        self._manifest = prefix_manifest_path(directory.with_name(directory.name.removesuffix(DIRECTORY_SUFFIX)))

    @property
    def are_merged(self) -> bool:
        """Whether the corpus is there. From then on any job may remove the parts while others look for work."""
        return self._manifest.exists()

    def create_or_resume(self) -> None:
        """Make the directory, or check that it was made by the same command.

        Raises:
            FingerprintMismatchError: it holds parts of another corpus, model or setting.
            InputError: it is none of ours, or cannot be written.
            CorruptArtifactError: its identity cannot be read.
        """
        path = self.directory / IDENTITY
        with usable(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                known = (IDENTITY, CLAIMS)
                names = (entry for entry in os.listdir(self.directory) if not entry.endswith(TEMPORARY_SUFFIX))
                if foreign := sorted(name for name in names if name not in known):
                    raise InputError(
                        f"{self.directory} holds {foreign[0]} but no {IDENTITY}, so it is not what an interrupted "
                        "generate-corpus has left: delete it, or give another --output-prefix"
                    )
                write_once(path, self._identity_bytes())
        self._require_equal()

    def part_path(self, block: int) -> Path:
        return self.directory / f"{block:08d}{_PART_SUFFIX}"

    def has_block(self, block: int) -> bool:
        """Whether a block is published; every block is, once the corpus is there."""
        return self.part_path(block).exists() or self.are_merged

    def missing_blocks(self) -> list[int]:
        """Blocks that are not published, in order; one directory listing."""
        with usable(self.directory):
            try:
                names = set(os.listdir(self.directory))
            except FileNotFoundError:
                if not self.are_merged:
                    raise
        if self.are_merged:  # asked after the listing, which may have met a removal half-way
            return []
        return [block for block in range(self.plan.num_blocks) if self.part_path(block).name not in names]

    def write_block(self, block: int, part: Part) -> bool:
        """Publish one block, unless another process was first, whose part stays.

        Raises:
            InputError: it cannot be written; nothing half-written is visible.
        """
        assert len(part.lengths_N2) == len(self.plan.sequences(block))
        with usable(self.directory):
            try:
                return write_once(self.part_path(block), part.to_bytes(self.identity_digest))
            except FileNotFoundError:
                if not self.are_merged:
                    raise
                return False

    def read_block(self, block: int) -> Part:
        """One published block.

        Raises:
            CorruptArtifactError: it is not whole, or not a block of this plan and identity.
        """
        path = self.part_path(block)
        try:
            with open_regular(path) as stream:
                return read_part(
                    stream,
                    num_sequences=len(self.plan.sequences(block)),
                    token_dtype=self.token_dtype,
                    identity_digest=self.identity_digest,
                )
        except (OSError, ValueError, InputError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CorruptArtifactError(
                f"{path} is damaged ({reason}): delete it and run the same generate-corpus command again"
            ) from None

    def check(self) -> None:
        """Read every published block: damage is better known before hours of work than after them.

        Raises:
            CorruptArtifactError: one is damaged.
        """
        missing = set(self.missing_blocks())
        for block in range(self.plan.num_blocks):
            if block not in missing and not self.are_merged:
                self.read_block(block)

    def remove(self) -> None:
        """Delete the directory, if there is one and it is ours; the identity last, so that a kill leaves it ours."""
        with suppress(OSError):  # a lease of another job may have made it anew; nothing is in it
            self.directory.rmdir()
        path = self.directory / IDENTITY
        if not path.is_file() or path.read_bytes() != self._identity_bytes():
            return
        for part in self.directory.glob(f"*{_PART_SUFFIX}"):
            with suppress(OSError):
                part.unlink()
        shutil.rmtree(self.directory / CLAIMS, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _identity_bytes(self) -> bytes:
        values = {"format_version": _FORMAT_VERSION, **self.identity}
        return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")

    def _require_equal(self) -> None:
        remedy = f"delete {self.directory}, or give another --output-prefix"
        there = read_json(self.directory / IDENTITY, what="identity of parts", remedy=remedy)
        differing = [name for name in ("format_version", *self.identity) if there.get(name) != self._expected(name)]
        if differing:
            name = differing[0]
            first = first_difference(there.get(name), self._expected(name))
            raise FingerprintMismatchError(
                f"{self.directory} holds parts of another {name} ({first}): "
                "run the command that has begun them, delete them, or give another --output-prefix"
            )

    def _expected(self, name: str) -> Any:
        return json.loads(self._identity_bytes())[name]
