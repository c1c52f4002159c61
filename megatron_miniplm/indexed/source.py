"""Which corpus holds the data of a view, and where in it the view's sequences are."""

from bisect import bisect_left
from contextlib import suppress
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import is_prefix, load_manifest
from megatron_miniplm.errors import CorruptArtifactError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path, idx_path


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
