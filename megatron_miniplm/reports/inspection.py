"""What an artifact on disk holds, and every way in which it can contradict itself.

Indices and data are read in chunks, so memory does not grow with the corpus.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.fingerprint import Fingerprint, digest_file_samples
from megatron_miniplm.artifacts.lineage import parent_path, relative_to_cwd
from megatron_miniplm.artifacts.manifest import Manifest, is_prefix, load_manifest, manifest_path, verify_files
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.artifacts.scores import ScoreStore, is_score_store
from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.indexed.layout import bin_path, idx_path, optimal_dtype
from megatron_miniplm.indexed.reader import IndexedCorpus

Advance = Callable[[int], object]

_SEQUENCE_CHUNK = 1 << 22
_TOKEN_CHUNK = 1 << 22
_QUANTILES = {"min": 0.0, "1%": 0.01, "25%": 0.25, "50%": 0.5, "75%": 0.75, "99%": 0.99, "max": 1.0}


@dataclass(frozen=True, kw_only=True)
class PrefixSummary:
    """What one Megatron prefix holds.

    Attributes:
        path: the prefix.
        kind: the manifest's; without one, `corpus` or `view` by whether the `.bin` is a link.
        token_dtype: NumPy name of the token dtype.
        num_empty_sequences: sequences without a token.
        length_quantiles_tokens: `min`, `1%`, ... `max`, each the length of an actual sequence; empty without sequences.
        data_path: the `.bin`; for a view, the file that its link leads to.
        fingerprint: computed from the files, not read from the manifest.
    """

    path: str
    kind: str
    token_dtype: str
    num_sequences: int
    num_documents: int
    num_tokens: int
    bin_bytes: int
    idx_bytes: int
    num_empty_sequences: int
    length_quantiles_tokens: dict[str, int]
    mean_length_tokens: float
    is_view: bool
    data_path: str
    fingerprint: Fingerprint


def find_prefixes(directory: Path) -> list[Path]:
    """The Megatron prefixes that lie in a directory, by name."""
    return sorted(path.with_suffix("") for path in directory.glob("*.idx"))


def summarize_prefix(prefix: Path) -> PrefixSummary:
    """Open a prefix and describe it, with or without a manifest.

    Raises:
        MiniPLMError: whatever `IndexedCorpus.open` and `load_manifest` refuse.
    """
    corpus = IndexedCorpus.open(prefix)
    num_tokens = corpus.num_tokens
    data = bin_path(prefix)
    return PrefixSummary(
        path=str(prefix),
        kind=load_manifest(prefix).kind if manifest_path(prefix).exists() else ("view" if corpus.is_view else "corpus"),
        token_dtype=corpus.token_dtype.name,
        num_sequences=len(corpus),
        num_documents=corpus.num_documents,
        num_tokens=num_tokens,
        bin_bytes=corpus.bin_bytes,
        idx_bytes=idx_path(prefix).stat().st_size,
        num_empty_sequences=sum(int((lengths == 0).sum()) for lengths in _chunks(corpus.lengths_N)),
        length_quantiles_tokens=length_quantiles(corpus.lengths_N),
        mean_length_tokens=num_tokens / max(1, len(corpus)),
        is_view=corpus.is_view,
        data_path=str(relative_to_cwd(data.resolve() if corpus.is_view else data)),
        fingerprint=corpus.fingerprint(),
    )


def length_quantiles(lengths_N: np.ndarray) -> dict[str, int]:
    """Exact quantiles of non-negative int32 lengths, each the lower of its two neighbours in sorted order.

    A radix selection: one pass counts the upper 16 bits of every length, one pass for each upper half that holds a
    quantile (nearly always 0 alone) counts the lower 16. Nothing is sorted or copied.
    """
    if len(lengths_N) == 0:
        return {}
    upper_counts = _count_16_bits(lengths >> 16 for lengths in _chunks(lengths_N))
    num_below_upper = np.cumsum(upper_counts)
    num_below_lower: dict[int, np.ndarray] = {}
    quantiles = {}
    for name, fraction in _QUANTILES.items():
        rank = int(fraction * (len(lengths_N) - 1))
        upper = int(np.searchsorted(num_below_upper, rank, side="right"))
        if upper not in num_below_lower:
            counts = _count_16_bits(lengths[lengths >> 16 == upper] & 0xFFFF for lengths in _chunks(lengths_N))
            num_below_lower[upper] = num_below_upper[upper] - upper_counts[upper] + np.cumsum(counts)
        quantiles[name] = (upper << 16) + int(np.searchsorted(num_below_lower[upper], rank, side="right"))
    return quantiles


def bytes_to_check(artifact: Path) -> int:
    """About how many bytes `find_faults` reads."""
    size_bytes = 0 if is_prefix(artifact) else sum(map(bytes_to_check, find_prefixes(artifact)))
    if is_prefix(artifact) and bin_path(artifact).exists():
        size_bytes += 2 * bin_path(artifact).stat().st_size
    with suppress(MiniPLMError):
        if is_score_store(artifact):
            size_bytes += ScoreStore.open(artifact).num_bytes
    with suppress(MiniPLMError):  # a fault, or there is none
        size_bytes += sum(entry["bytes"] for entry in load_manifest(artifact).files.values())
    return size_bytes


def find_faults(artifact: Path, advance: Advance = lambda num_bytes: None) -> list[str]:
    """Every contradiction of a prefix, or of a directory and the prefixes in it; one message each.

    Reads every byte of the artifact's files, of the raw text it was made from if that is still here, and of the data
    that a view points to where its tokens are signed.

    Args:
        advance: called with every number of bytes read, some `bytes_to_check` in all.
    """
    faults, manifest = [], None
    if manifest_path(artifact).exists():
        try:
            manifest = load_manifest(artifact)
        except MiniPLMError as error:
            faults.append(str(error))
    if is_prefix(artifact):
        faults = [*_corpus_faults(artifact, manifest, advance), *faults]
    else:
        faults = [*(fault for prefix in find_prefixes(artifact) for fault in find_faults(prefix, advance)), *faults]
    if manifest is not None:
        faults += [*verify_files(artifact, manifest, advance), *_parent_faults(artifact, manifest)]
    if is_score_store(artifact):
        faults += _score_faults(artifact, manifest, advance)
    return list(dict.fromkeys(faults))  # the faults of a prefix may be those of its directory's manifest too


def _corpus_faults(prefix: Path, manifest: Manifest | None, advance: Advance) -> list[str]:
    try:
        corpus = IndexedCorpus.open(prefix)
    except MiniPLMError as error:
        return [str(error)]
    vocab_size = manifest.settings.get("vocab_size") if manifest is not None else None
    if vocab_size is not None and corpus.token_dtype != (expected := optimal_dtype(vocab_size)):
        return [
            f"{idx_path(prefix)}: the tokens are {corpus.token_dtype} from sequence 0 on, expected {expected} for a "
            f"vocabulary of {vocab_size}: the index is damaged; copy or preprocess it again"
        ]
    faults = [*_token_faults(corpus, vocab_size, advance), *_fingerprint_faults(corpus)]
    if manifest is not None and manifest.kind == "corpus":
        faults = [*_contiguity_faults(corpus), *_sidecar_faults(corpus, advance), *faults]
    return faults


def _score_faults(directory: Path, manifest: Manifest | None, advance: Advance) -> Iterator[str]:
    """Blocks that are missing or damaged, and whether identity, checksums and manifest belong together."""
    try:
        store = ScoreStore.open(directory)
        missing = store.missing_blocks()
        if missing:
            yield (
                f"{directory}: {len(missing)} of {store.plan.num_blocks} blocks are missing (first: {missing[0]}): "
                "run the same scoring command again"
            )
        yield from store.verify(advance).values()
        if manifest is not None:
            yield from store.fingerprint_faults(manifest)
    except MiniPLMError as error:
        yield str(error)


def _contiguity_faults(corpus: IndexedCorpus) -> Iterator[str]:
    """The sequences of a corpus lie one after the other; only a view may skip and repeat."""
    expected_bytes = 0
    for start in range(0, len(corpus), _SEQUENCE_CHUNK):
        lengths = corpus.lengths_N[start : start + _SEQUENCE_CHUNK]
        pointers = corpus.pointers_N[start : start + _SEQUENCE_CHUNK]
        stops = expected_bytes + np.cumsum(lengths, dtype=np.int64) * corpus.token_dtype.itemsize
        wrong = pointers != np.concatenate(([expected_bytes], stops[:-1]))
        if wrong.any():
            first = int(np.argmax(wrong))
            yield (
                f"{idx_path(corpus.prefix)}: sequence {start + first} is at byte {pointers[first]}, but the sequence "
                "before it does not end there: the index is damaged; copy or preprocess it again"
            )
            return
        expected_bytes = int(stops[-1])


def _sidecar_faults(corpus: IndexedCorpus, advance: Advance) -> Iterator[str]:
    """The first sequence that is not what the sidecar says."""
    from megatron_miniplm.indexed.sidecar import Sidecar, find_mismatch, sidecar_path

    if corpus.is_view or not sidecar_path(corpus.prefix).exists():
        return
    try:
        mismatch = find_mismatch(Sidecar(sidecar_path(corpus.prefix)), corpus, advance)
    except MiniPLMError as error:
        yield str(error)
        return
    if mismatch:
        yield mismatch


def _token_faults(corpus: IndexedCorpus, vocab_size: int | None, advance: Advance) -> Iterator[str]:
    """The first token that is no id of the vocabulary, or negative."""
    if vocab_size is None and corpus.token_dtype.kind == "u":
        return
    position_tokens = 0
    with open_regular(bin_path(corpus.prefix)) as stream:
        while len(tokens := np.fromfile(stream, corpus.token_dtype, _TOKEN_CHUNK)):
            wrong = tokens < 0
            if vocab_size is not None:
                wrong |= tokens >= vocab_size
            if wrong.any():
                first = int(np.argmax(wrong))
                position_bytes = (position_tokens + first) * corpus.token_dtype.itemsize
                expected = "no negative ones" if vocab_size is None else f"0 to {vocab_size - 1}"
                yield (
                    f"{bin_path(corpus.prefix)}: {_sequence_at(corpus, position_bytes)} has token {tokens[first]} at "
                    f"byte {position_bytes}, expected {expected}: the data is damaged; copy or preprocess it again"
                )
                return
            position_tokens += len(tokens)
            advance(tokens.nbytes)


def _sequence_at(corpus: IndexedCorpus, position_bytes: int) -> str:
    if corpus.is_view:
        return "a sequence of the data that it points to"
    return f"sequence {int(np.searchsorted(corpus.pointers_N, position_bytes, side='right')) - 1}"


def _fingerprint_faults(corpus: IndexedCorpus) -> Iterator[str]:
    try:
        corpus.verified_fingerprint()
    except MiniPLMError as error:
        yield str(error)


def _parent_faults(artifact: Path, manifest: Manifest) -> Iterator[str]:
    for parent in manifest.inputs:
        path = parent_path(artifact, parent)
        try:
            found = _current_fingerprint(path, parent.role)
        except MiniPLMError as error:
            yield f"{artifact}: its {parent.role} cannot be read: {error}"
            continue
        if found not in (None, parent.fingerprint):
            yield (
                f"{artifact} was made from {parent.role} {path} with fingerprint {parent.fingerprint}, which is now "
                f"{found}: make it again, or restore what it was made from"
            )


def _current_fingerprint(path: Path, role: str) -> Fingerprint | None:
    """From the files for a prefix or raw text, else from the manifest; None for what has none or is not here."""
    if is_prefix(path):
        return IndexedCorpus.open(path).fingerprint()
    if role == "text" and path.is_file():
        return digest_file_samples(path)
    return load_manifest(path).fingerprint if manifest_path(path).exists() else None


def _chunks(array_N: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(array_N), _SEQUENCE_CHUNK):
        yield array_N[start : start + _SEQUENCE_CHUNK]


def _count_16_bits(chunks: Iterator[np.ndarray]) -> np.ndarray:
    counts = np.zeros(1 << 16, np.int64)
    for chunk in chunks:
        counts += np.bincount(chunk, minlength=1 << 16)
    return counts
