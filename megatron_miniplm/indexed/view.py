"""Views: an `.idx` whose pointers select sequences of someone else's `.bin`, with no token copied.

Megatron's `GPTDataset` reads only through `IndexedDataset.get(index, offset, length)`, which follows the pointers, so
unpatched Megatron trains on a view with plain `--data-path`. Two limits: Megatron's slices `dataset[a:b]` read one
contiguous run, and its index writer and merge tool recompute pointers; neither may be used on a view.

Axes: N sequences of the source, K selected ones, C of these in one chunk, D document boundaries.
"""

import mmap
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.atomic import temporary_beside
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint, digest_values, hasher
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import Manifest, input_of, is_prefix, load_manifest
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError
from megatron_miniplm.indexed.layout import POINTER_DTYPE, IndexHeader, bin_path, idx_path
from megatron_miniplm.indexed.reader import IndexedCorpus, fingerprint_of
from megatron_miniplm.indexed.writer import chunks_of, write_index_chunks

_CHUNK_SEQUENCES = 1 << 20  # selected sequences that are worked on together; bounds the memory
_MAX_SPAN_FACTOR = 8  # what lies between the sequences of a chunk is read too, up to so many times their number


def write_view(
    source: IndexedCorpus,
    sequences_K: np.ndarray,
    directory: Path,
    *,
    label: str,
    settings: dict[str, object],
    source_fingerprint: Fingerprint | None = None,
) -> Path:
    """Write a view of the given sequences, in the given order; an index may repeat.

    The name is `view_name`: Megatron keys its index caches by path, so a view with other content must have another
    name. The same content gives the same name and the same bytes.

    Memory grows neither with K nor, where the sequences ascend, with the source: some 100 MB. About 0.2 s for a million
    sequences, most of it the file system's.

    Args:
        source: the corpus, or itself a view.
        sequences_K: indices into `source`, any integer dtype, each in [0, len(source)); may be a memory map.
        directory: where the view goes; the `.bin` becomes a relative symlink to the original data.
        label: what the view is, such as `refined`.
        settings: recorded in the manifest; part of the name's digest only through the content they produce.
        source_fingerprint: `source.verified_fingerprint()`, where the caller knows it: it reads the whole index.

    Returns:
        The prefix of the view.

    Raises:
        InputError: a sequence is not in the source.
    """
    source_fingerprint = source_fingerprint or source.verified_fingerprint()
    index = _ViewIndex(source, sequences_K)
    prefix = directory / view_name(source, sequences_K, label=label, source_fingerprint=source_fingerprint)
    directory.mkdir(parents=True, exist_ok=True)
    _link_data(source, prefix)
    num_boundaries = index.count_boundaries()
    files = write_index_chunks(
        prefix,
        IndexHeader(token_dtype=source.token_dtype, num_sequences=len(sequences_K), num_boundaries=num_boundaries),
        lengths=index.lengths(),
        pointers=index.pointers(),
        boundaries=index.boundaries(),
    )
    (checksum,) = files.values()
    Manifest(
        kind="view",
        fingerprint=fingerprint_of(prefix, str(checksum["blake2b"])),
        counts={
            "num_sequences": len(sequences_K),
            "num_documents": num_boundaries - 1,
            "num_tokens": index.num_tokens,
        },
        settings={"label": label, **settings},
        inputs=(input_of("source", source.prefix, source_fingerprint, relative_to=directory),),
        files=files,
    ).write(prefix)
    return prefix


def view_name(source: IndexedCorpus, sequences_K: np.ndarray, *, label: str, source_fingerprint: Fingerprint) -> str:
    """The name of a view, `<source name>_<label>-<digest>`; reads the selected sequences, about 1 GB/s.

    Raises:
        InputError: a sequence is not in the source.
    """
    digest = hasher()
    for sequences_C in _chunks(sequences_K):
        for sequence in (int(sequences_C.min()), int(sequences_C.max())):
            if not 0 <= sequence < len(source):
                raise InputError(
                    f"sequence {sequence} was selected, but {source.prefix} has {len(source)}: the selection is of "
                    "another corpus; make it again"
                )
        digest.update(sequences_C.data)
    content = digest_values("view", source_fingerprint, digest.hexdigest())
    return f"{source.prefix.name}_{label}-{content[:SHORT_HEX]}"


class _ViewIndex:
    """The three arrays of a view's `.idx`, in chunks.

    Attributes:
        num_tokens: of the view, once `lengths` is exhausted.
    """

    def __init__(self, source: IndexedCorpus, sequences_K: np.ndarray) -> None:
        self.num_tokens = 0
        self._source = source
        self._sequences_K = sequences_K

    def lengths(self) -> Iterator[np.ndarray]:
        for sequences_C in _chunks(self._sequences_K):
            lengths_C = _gather(self._source.lengths_N, sequences_C)
            self._source.forget_pages()
            self.num_tokens += int(lengths_C.sum(dtype=np.int64))
            yield lengths_C

    def pointers(self) -> Iterator[np.ndarray]:
        for sequences_C in _chunks(self._sequences_K):
            pointers_C = _gather(self._source.pointers_N, sequences_C)
            self._source.forget_pages()
            yield pointers_C

    def boundaries(self) -> Iterator[np.ndarray]:
        """A document of the view is a run of selected sequences of one source document, in ascending order."""
        num_sequences = len(self._sequences_K)
        yield np.zeros(1, POINTER_DTYPE)
        if self._every_sequence_is_a_document:  # then a run in ascending order is one sequence
            for start in range(0, num_sequences, _CHUNK_SEQUENCES):
                yield np.arange(start + 1, min(start + _CHUNK_SEQUENCES, num_sequences) + 1, dtype=POINTER_DTYPE)
            return
        start, before = 0, np.zeros(0, POINTER_DTYPE)
        for sequences_C in _chunks(self._sequences_K):
            joined = np.concatenate((before, sequences_C))
            documents = _documents_of(self._source.boundaries_D, joined)
            self._source.forget_pages()
            starts_new = (documents[1:] != documents[:-1]) | (joined[1:] <= joined[:-1])
            yield start - len(before) + 1 + np.flatnonzero(starts_new)
            start, before = start + len(sequences_C), sequences_C[-1:]
        if num_sequences:
            yield np.array([num_sequences], POINTER_DTYPE)

    def count_boundaries(self) -> int:
        if self._every_sequence_is_a_document:
            return len(self._sequences_K) + 1
        return sum(map(len, self.boundaries()))

    @cached_property
    def _every_sequence_is_a_document(self) -> bool:
        """Whether the boundaries, without repetitions, are 0, 1, ... N."""
        boundaries_D, num_steps = self._source.boundaries_D, 0
        for start in range(0, len(boundaries_D), _CHUNK_SEQUENCES):
            chunk = boundaries_D[start : start + _CHUNK_SEQUENCES + 1]
            num_steps += int(np.count_nonzero(chunk[1:] != chunk[:-1]))
            self._source.forget_pages()
        return num_steps == len(self._source)


def _chunks(sequences_K: np.ndarray) -> Iterator[np.ndarray]:
    """The selected sequences as int64 in native memory; the pages of a memory map are given back."""
    for chunk in chunks_of(sequences_K, _CHUNK_SEQUENCES):
        yield np.array(chunk, POINTER_DTYPE, order="C")  # signed: unsigned differences would wrap
        mapped = getattr(sequences_K, "_mmap", None)
        if isinstance(mapped, mmap.mmap) and sequences_K.mode != "c":  # type: ignore[attr-defined]
            mapped.madvise(mmap.MADV_DONTNEED)


def _gather(values_N: np.ndarray, sequences_C: np.ndarray) -> np.ndarray:
    """`values_N[sequences_C]`; NumPy is slow on arrays that are not aligned, as those of an `.idx` are."""
    first, last = int(sequences_C.min()), int(sequences_C.max())
    if last - first >= _MAX_SPAN_FACTOR * len(sequences_C):
        return values_N[sequences_C]
    return values_N[first : last + 1].copy().take(sequences_C - first, mode="clip")  # "raise" checks again, slowly


def _documents_of(boundaries_D: np.ndarray, sequences_C: np.ndarray) -> np.ndarray:
    """A number for each sequence that is equal where the document is; of 1 + C sequences, 1 or more boundaries."""
    start = bisect_right(boundaries_D, int(sequences_C.min()))
    stop = bisect_right(boundaries_D, int(sequences_C.max()), lo=start)
    if stop - start <= _MAX_SPAN_FACTOR * len(sequences_C):
        return np.searchsorted(boundaries_D[start:stop].copy(), sequences_C, side="right")
    # The same search, of all sequences at once: np.searchsorted would copy all boundaries, which are not aligned.
    low, high = np.full(len(sequences_C), start), np.full(len(sequences_C), stop)
    for _ in range(int(stop - start).bit_length()):
        middle = (low + high) // 2
        is_right = boundaries_D[np.minimum(middle, len(boundaries_D) - 1)] <= sequences_C
        is_open = low < high
        low, high = np.where(is_open & is_right, middle + 1, low), np.where(is_open & ~is_right, middle, high)
    return low


def _link_data(source: IndexedCorpus, prefix: Path) -> None:
    """Point `<prefix>.bin` at the data itself, never at another view's link, so that views may be deleted freely."""
    data = bin_path(source.prefix).resolve()
    target = os.path.relpath(data, prefix.parent.resolve())
    link = bin_path(prefix)
    if link.is_symlink() and os.readlink(link) == target:
        return
    temporary = temporary_beside(link)
    os.symlink(target, temporary)
    os.replace(temporary, link)


def data_prefix(prefix: Path) -> Path:
    """The prefix whose `.bin` holds the tokens: a view's source, else the prefix itself."""
    data = bin_path(prefix)
    if not data.is_symlink():
        return prefix
    source = data.resolve().with_suffix("")
    if idx_path(source).exists():
        return source
    # A store by content (Hugging Face's cache, git-annex, DVC) links both files to names that are no pair.
    return prefix if idx_path(prefix).is_symlink() else _source_by_manifest(prefix) or source


def _source_by_manifest(view: Path) -> Path | None:
    """The corpus that a view of a corpus stored by content was made of, as the manifest of the view says."""
    with suppress(MiniPLMError):
        parents = [parent for parent in load_manifest(view).inputs if parent.role == "source"]
        for source in (parent_path(view, parent) for parent in parents):
            if is_prefix(source) and bin_path(source).resolve() == bin_path(view).resolve():
                return data_prefix(source)
    return None


def source_sequences(view: IndexedCorpus) -> np.ndarray:
    """For each sequence of a view, its index in the corpus that holds the data, int64; of a corpus, 0 .. N - 1.

    Raises:
        InputError: the index of that corpus is not beside its data.
        CorruptArtifactError: a sequence of the view is none of the corpus's.
    """
    if not view.is_view:
        return np.arange(len(view), dtype=np.int64)
    source = IndexedCorpus.open(data_prefix(view.prefix))
    return _checked(view, slice(None), source, np.searchsorted(source.pointers_N, view.pointers_N))


def source_sequence(view: IndexedCorpus, sequence: int) -> int:
    """One of `source_sequences`, in time and memory that do not grow with the corpus."""
    if not view.is_view:
        return sequence
    source = IndexedCorpus.open(data_prefix(view.prefix))
    found = bisect_left(source.pointers_N, view.pointers_N[sequence])
    return int(_checked(view, slice(sequence, sequence + 1), source, np.array([found]))[0])


def _checked(view: IndexedCorpus, part: slice, source: IndexedCorpus, found_K: np.ndarray) -> np.ndarray:
    """The sequences of a source at which K of a view were looked for, int64, if they are there."""
    found_K = np.minimum(found_K, max(0, len(source) - 1)).astype(np.int64)
    pointers_K, lengths_K = view.pointers_N[part], view.lengths_N[part]
    wrong = (source.pointers_N[found_K] != pointers_K) | (source.lengths_N[found_K] != lengths_K)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise CorruptArtifactError(
            f"{view.prefix}: sequence {(part.start or 0) + first} at byte {pointers_K[first]} is no sequence of "
            f"{source.prefix}: the view was made of another corpus; make it again"
        )
    return found_K
