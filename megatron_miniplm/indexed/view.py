"""Views: an `.idx` whose pointers select sequences of someone else's `.bin`, with no token copied.

Megatron's `GPTDataset` reads only through `IndexedDataset.get(index, offset, length)`, which follows the pointers, so
unpatched Megatron trains on a view with plain `--data-path`. Two limits: Megatron's slices `dataset[a:b]` read one
contiguous run, and its index writer and merge tool recompute pointers; neither may be used on a view.
"""

import os
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.atomic import temporary_beside
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, digest_array, digest_values
from megatron_miniplm.artifacts.manifest import Manifest, input_of
from megatron_miniplm.indexed.layout import bin_path
from megatron_miniplm.indexed.reader import IndexedCorpus
from megatron_miniplm.indexed.writer import write_index


def write_view(
    source: IndexedCorpus, sequences_K: np.ndarray, directory: Path, *, label: str, settings: dict[str, object]
) -> Path:
    """Write a view of the given sequences, in the given order; an index may repeat.

    The name is `<source name>_<label>-<digest>`: Megatron keys its index caches by path, so a view with other content
    must have another name. The same content gives the same name and the same bytes.

    Args:
        source: the corpus, or itself a view.
        sequences_K: indices into `source`, any integer dtype, each in [0, len(source)).
        directory: where the view goes; the `.bin` becomes a relative symlink to the original data.
        label: what the view is, such as `refined`.
        settings: recorded in the manifest; part of the name's digest only through the content they produce.

    Returns:
        The prefix of the view.
    """
    sequences_K = sequences_K.astype("<i8")  # unsigned differences would wrap
    source_fingerprint = source.verified_fingerprint()
    content = digest_values("view", source_fingerprint, digest_array(sequences_K))
    prefix = directory / f"{source.prefix.name}_{label}-{content[:SHORT_HEX]}"
    directory.mkdir(parents=True, exist_ok=True)
    _link_data(source, prefix)
    lengths_K = source.lengths_N[sequences_K]
    index = write_index(
        prefix,
        token_dtype=source.token_dtype,
        lengths_N=lengths_K,
        pointers_N=source.pointers_N[sequences_K],
        boundaries_D=_document_boundaries(source, sequences_K),
    )
    view = IndexedCorpus.open(prefix)
    Manifest(
        kind="view",
        fingerprint=view.fingerprint(),
        counts={
            "num_sequences": len(view),
            "num_documents": view.num_documents,
            "num_tokens": view.num_tokens,
        },
        settings={"label": label, **settings},
        inputs=(input_of("source", source.prefix, source_fingerprint, relative_to=directory),),
        files=index,
    ).write(prefix)
    return prefix


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


def _document_boundaries(source: IndexedCorpus, sequences_K: np.ndarray) -> np.ndarray:
    """A document of the view is a run of selected sequences of one source document, in ascending order."""
    if len(sequences_K) == 0:
        return np.zeros(1, np.int64)
    documents_K = np.searchsorted(source.boundaries_D, sequences_K, side="right")
    starts_new = (np.diff(documents_K) != 0) | (np.diff(sequences_K) <= 0)
    return np.concatenate(([0], np.flatnonzero(starts_new) + 1, [len(sequences_K)])).astype(np.int64)
