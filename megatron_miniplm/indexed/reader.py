"""A memory-mapped reader that refuses what Megatron's own would read as garbage."""

import mmap
from pathlib import Path
from typing import Self

import numpy as np

from megatron_miniplm.artifacts.fingerprint import (
    SHORT_HEX,
    Fingerprint,
    digest_file,
    digest_file_samples,
    digest_values,
)
from megatron_miniplm.artifacts.manifest import load_manifest, manifest_path
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed.layout import (
    HEADER,
    LENGTH_DTYPE,
    MAGIC,
    POINTER_DTYPE,
    TOKEN_DTYPES,
    VERSION,
    IndexHeader,
    bin_path,
    idx_path,
)

_CHECK_CHUNK = 1 << 19  # sequences looked at together; bounds the memory of the checks


class IndexedCorpus:
    """One `<prefix>.bin/.idx`, or a view of one, mapped read-only.

    Attributes:
        prefix: the path without extension.
        token_dtype: dtype of the tokens in the `.bin`.
        lengths_N: tokens of each sequence, int32.
        pointers_N: byte offset of each sequence in the `.bin`, int64.
        boundaries_D: sequence index at which each document starts, int64, ending with the number of sequences.
        data: every byte of the `.bin`, uint8.
        bin_bytes: their number.
    """

    def __init__(self, prefix: Path, header: IndexHeader) -> None:
        self.prefix = prefix
        self.token_dtype = header.token_dtype
        index_bytes = _map(idx_path(prefix))
        self.lengths_N = np.frombuffer(index_bytes, LENGTH_DTYPE, header.num_sequences, header.lengths_offset)
        self.pointers_N = np.frombuffer(index_bytes, POINTER_DTYPE, header.num_sequences, header.pointers_offset)
        self.boundaries_D = np.frombuffer(index_bytes, POINTER_DTYPE, header.num_boundaries, header.boundaries_offset)
        with open_regular(bin_path(prefix)) as stream:
            self.bin_bytes = stream.seek(0, 2)
        data = _map(bin_path(prefix)) if self.bin_bytes else None  # an empty file cannot be mapped
        self.data = np.frombuffer(data if data is not None else b"", np.uint8)
        self._maps = (index_bytes,) if data is None else (index_bytes, data)

    @classmethod
    def open(cls, prefix: Path | str) -> Self:
        """Open a prefix and check that index and data agree; about 0.1 s per 10 million sequences.

        Raises:
            InputError: a file is missing.
            CorruptArtifactError: the header, a size, a pointer or a document boundary is wrong.
        """
        prefix = Path(prefix)
        for path in (idx_path(prefix), bin_path(prefix)):
            if path.is_symlink() and not path.exists():
                raise InputError(
                    f"{path} links to {path.readlink()}, which is not there: restore the data of this view"
                )
            if not path.exists():
                raise InputError(f"{path} does not exist: give the prefix of a .bin/.idx pair, without extension")
        corpus = cls(prefix, _read_header(idx_path(prefix)))
        corpus._check_pointers()
        corpus._check_boundaries()
        return corpus

    def __len__(self) -> int:
        return len(self.lengths_N)

    def forget_pages(self) -> None:
        """Give back the pages that were read through the maps: they count as memory of this process until then.

        What has been handed out stays valid; the next access reads it again, from the page cache as a rule.
        """
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths_N.sum(dtype=np.int64))

    @property
    def num_documents(self) -> int:
        return len(self.boundaries_D) - 1

    @property
    def is_view(self) -> bool:
        """Whether the `.bin` belongs to another prefix."""
        return bin_path(self.prefix).is_symlink()

    def sequence(self, index: int) -> np.ndarray:
        """The tokens of one sequence, a read-only view into the `.bin`."""
        start = int(self.pointers_N[index])
        stop = start + int(self.lengths_N[index]) * self.token_dtype.itemsize
        return self.data[start:stop].view(self.token_dtype)

    def verified_fingerprint(self) -> Fingerprint:
        """The fingerprint, after comparing it with the manifest where there is one.

        Raises:
            CorruptArtifactError: the files are no longer those that were written.
        """
        found = self.fingerprint()
        if manifest_path(self.prefix).exists() and (recorded := load_manifest(self.prefix).fingerprint) != found:
            raise CorruptArtifactError(
                f"{self.prefix} has fingerprint {found[:SHORT_HEX]}, its manifest says {recorded[:SHORT_HEX]}: "
                "its files have changed since they were written; make them again"
            )
        return found

    def fingerprint(self) -> Fingerprint:
        """Identity by content: every byte of the index, size and samples of the data.

        Two copies of one corpus have one fingerprint wherever they lie; a view's differs from its source's unless it
        has the same index.
        """
        return fingerprint_of(self.prefix, digest_file(idx_path(self.prefix)))

    def _check_pointers(self) -> None:
        """Every sequence lies inside the `.bin`, aligned to the token size, and a corpus owns all of its `.bin`."""
        itemsize = self.token_dtype.itemsize
        stop_bytes = 0
        for start in range(0, len(self), _CHECK_CHUNK):
            lengths = self.lengths_N[start : start + _CHECK_CHUNK].astype(np.int64)
            pointers = self.pointers_N[start : start + _CHECK_CHUNK]
            wrong = (lengths < 0) | (pointers < 0) | (pointers % itemsize != 0)
            wrong |= pointers > self.bin_bytes - lengths * itemsize  # the sum could overflow
            if wrong.any():
                first = int(np.argmax(wrong))
                raise CorruptArtifactError(
                    f"{idx_path(self.prefix)}: sequence {start + first} has {lengths[first]} tokens of {itemsize} "
                    f"bytes at byte {pointers[first]}, but {bin_path(self.prefix).name} has {self.bin_bytes} bytes: "
                    "the .bin is truncated or belongs to another .idx; copy or preprocess it again"
                )
            stop_bytes = max(stop_bytes, int((pointers + lengths * itemsize).max()))
            self.forget_pages()
        if not self.is_view and stop_bytes < self.bin_bytes:
            raise CorruptArtifactError(
                f"{bin_path(self.prefix)} has {self.bin_bytes} bytes, the last sequence of its index ends at "
                f"{stop_bytes}: the .idx belongs to a shorter .bin, or its token dtype ({self.token_dtype}) is not "
                "that of the data; copy or preprocess the pair again"
            )

    def _check_boundaries(self) -> None:
        """Documents start at 0, never go back, and end at the number of sequences; an empty document is allowed."""
        boundaries = self.boundaries_D
        if boundaries[0] != 0 or boundaries[-1] != len(self):
            raise CorruptArtifactError(
                f"{idx_path(self.prefix)}: the document boundaries run from {boundaries[0]} to {boundaries[-1]}, "
                f"expected 0 to {len(self)}: the index is damaged, or its writer left a document open; make it again"
            )
        for start in range(0, len(boundaries), _CHECK_CHUNK):
            chunk = boundaries[start : start + _CHECK_CHUNK + 1]
            backwards = chunk[1:] < chunk[:-1]
            if backwards.any():
                first = start + int(np.argmax(backwards))
                raise CorruptArtifactError(
                    f"{idx_path(self.prefix)}: document {first} starts at sequence {boundaries[first]} and ends before "
                    f"it, at {boundaries[first + 1]}: the index is damaged; make it again"
                )
            self.forget_pages()


def fingerprint_of(prefix: Path, index_digest: Fingerprint) -> Fingerprint:
    """The fingerprint of a prefix whose `.idx` was digested already, as its manifest's `files` have it."""
    return digest_values("indexed", index_digest, digest_file_samples(bin_path(prefix)))


def _map(path: Path) -> mmap.mmap:
    with open_regular(path) as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _read_header(path: Path) -> IndexHeader:
    with open_regular(path) as stream:
        head, size_bytes = stream.read(HEADER.size), stream.seek(0, 2)
    if len(head) < HEADER.size:
        raise CorruptArtifactError(f"{path} has {size_bytes} bytes, too few for an index: make it again")
    magic, version, dtype_code, num_sequences, num_boundaries = HEADER.unpack(head)
    if magic != MAGIC or version != VERSION:
        raise CorruptArtifactError(f"{path} is not a Megatron index (magic {magic!r}, version {version})")
    if dtype_code not in TOKEN_DTYPES:
        raise CorruptArtifactError(f"{path}: token dtype code {dtype_code} is not one of {sorted(TOKEN_DTYPES)}")
    header = IndexHeader(
        token_dtype=TOKEN_DTYPES[dtype_code], num_sequences=num_sequences, num_boundaries=num_boundaries
    )
    if header.token_dtype.kind not in "iu":
        raise CorruptArtifactError(f"{path}: the data type is {header.token_dtype}, tokens must be integers")
    if num_boundaries == 0:
        raise CorruptArtifactError(f"{path} has no document boundaries, expected at least one: make it again")
    # Multimodal data sets append one int8 mode a sequence.
    if size_bytes not in (header.size_bytes, header.size_bytes + num_sequences):
        raise CorruptArtifactError(
            f"{path} has {size_bytes} bytes, its header ({num_sequences} sequences, {num_boundaries} document "
            f"boundaries) asks for {header.size_bytes}: {_cut(header, size_bytes)}; copy or make it again"
        )
    return header


def _cut(header: IndexHeader, size_bytes: int) -> str:
    """Where an index of the wrong size ends."""
    if size_bytes > header.size_bytes:
        return "the index has a tail, or its header is damaged"
    parts = (
        ("document boundary", header.boundaries_offset, POINTER_DTYPE),
        ("the pointer of sequence", header.pointers_offset, POINTER_DTYPE),
        ("the length of sequence", header.lengths_offset, LENGTH_DTYPE),
    )
    name, offset, dtype = next(part for part in parts if size_bytes >= part[1])
    return f"the index is cut off at {name} {(size_bytes - offset) // dtype.itemsize}"


class Pool:
    """The sequences of several prefixes: those of the first, then those of the second, and so on."""

    def __init__(self, corpora: list[IndexedCorpus]) -> None:
        self.read_from(corpora)

    def read_from(self, corpora: list[IndexedCorpus]) -> None:
        """Put other prefixes in place of those that it has."""
        self.corpora = corpora
        self._stops = np.cumsum([len(corpus) for corpus in corpora])

    def __len__(self) -> int:
        return int(self._stops[-1])

    def locate(self, index: int) -> tuple[IndexedCorpus, int]:
        """The corpus of the sequence with this global id, and its index there."""
        corpus = int(np.searchsorted(self._stops, index, side="right"))
        return self.corpora[corpus], index - int(self._stops[corpus]) + len(self.corpora[corpus])

    def sequence(self, index: int) -> np.ndarray:
        """Tokens of the sequence with this global id."""
        corpus, local_index = self.locate(index)
        return corpus.sequence(local_index)

    def lengths(self, sequences: range) -> np.ndarray:
        """Tokens of each of a run of sequences, int64."""
        parts, start = [], 0
        for corpus in self.corpora:
            lo, hi = max(sequences.start - start, 0), min(sequences.stop - start, len(corpus))
            parts.append(corpus.lengths_N[lo : max(lo, hi)])
            start += len(corpus)
        return np.concatenate(parts).astype(np.int64)
