"""Scores and attributes of a piece of the corpus -> what takes part in the selection, with which value."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path
from megatron_miniplm.runtime.hashing import perturbed
from megatron_miniplm.selection.ranks import Ranks
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import CHUNK_SEQUENCES, Piece, ScoredCorpus, Scores
from megatron_miniplm.selection.top import Ordered, Threshold, keeps

_DOMAIN_DTYPE, _BYTES_DTYPE, _SEEN_DTYPE = np.dtype("<u2"), np.dtype("<i8"), np.dtype("?")


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Arrays of all prefixes, on disk.

    Attributes:
        directory: of the arrays.
        domains: names of all domains, sorted.
        codes: of every prefix, the place in `domains` of each code of its own array.
        num_seen_P: sequences of each prefix that the reference has seen; empty where nobody asked.
    """

    directory: Path
    domains: tuple[str, ...] = ()
    codes: tuple[np.ndarray, ...] = ()
    num_seen_P: tuple[int, ...] = ()

    def domain(self, piece: Piece) -> np.ndarray:
        """The place of each sequence's domain in `domains`, int64."""
        return self.codes[piece.prefix][self._read("domain", _DOMAIN_DTYPE, piece)]

    def text_bytes(self, piece: Piece) -> np.ndarray:
        """Bytes of UTF-8 of each sequence, int64."""
        return self._read("bytes", _BYTES_DTYPE, piece)

    def is_seen(self, piece: Piece) -> np.ndarray:
        """Whether the reference was trained on it, bool."""
        return self._read("seen", _SEEN_DTYPE, piece)

    def _read(self, name: str, dtype: np.dtype, piece: Piece) -> np.ndarray:
        path = _path(self.directory, name, piece.prefix)
        return np.fromfile(path, dtype, piece.size, offset=piece.first * dtype.itemsize)


def collect_attributes(
    corpora: Sequence[IndexedCorpus],
    directory: Path,
    *,
    with_domains: bool,
    with_bytes: bool,
    seen: Iterable[Path],
    ranks: Ranks,
) -> Attributes:
    """Write the arrays that are asked for; a collective call, each rank writes some of the prefixes.

    Args:
        corpora: one a prefix.
        directory: exists, and all ranks see it.
        seen: prefixes that the reference was trained on.

    Raises:
        InputError: a prefix has no sidecar, though domains or bytes are asked for.
        CorruptArtifactError: a sidecar is of another corpus.
    """
    seen_corpora = [IndexedCorpus.open(prefix) for prefix in seen]
    names_of: dict[int, list[str]] = {}
    num_seen_of: dict[int, int] = {}
    for position in range(ranks.rank, len(corpora), ranks.size):
        corpus = corpora[position]
        if with_domains or with_bytes:
            names_of[position] = _write_sidecar_columns(corpus, position, directory)
        if seen_corpora:
            num_seen_of[position] = _write_seen(corpus, seen_corpora, _path(directory, "seen", position))
    gathered = ranks.gather((names_of, num_seen_of))
    all_names = {position: names for found, _ in gathered for position, names in found.items()}
    all_seen = {position: count for _, found in gathered for position, count in found.items()}
    domains = tuple(sorted({name for names in all_names.values() for name in names}))
    place_of = {name: place for place, name in enumerate(domains)}
    return Attributes(
        directory=directory,
        domains=domains,
        codes=tuple(
            np.array([place_of[name] for name in all_names[position]], np.int64) for position in sorted(all_names)
        ),
        num_seen_P=tuple(all_seen[position] for position in sorted(all_seen)),
    )


def _path(directory: Path, name: str, prefix: int) -> Path:
    return directory / f"{prefix:04d}.{name}"


def _write_sidecar_columns(corpus: IndexedCorpus, position: int, directory: Path) -> list[str]:
    """Domain and bytes of every sequence; returns the names of the domains by code."""
    from megatron_miniplm.indexed.sidecar import Sidecar, fill_domains_and_bytes  # pyarrow takes 0.15 s
    from megatron_miniplm.indexed.view import data_prefix, source_sequences

    sidecar = Sidecar.of(corpus)
    if sidecar is None:
        raise InputError(
            f"{data_prefix(corpus.prefix)} has no sidecar, which says of what domain and size texts are: make the "
            "corpus with miniplm preprocess-data, or do without domains and bits-per-byte"
        )
    source = IndexedCorpus.open(data_prefix(corpus.prefix)) if corpus.is_view else corpus
    domain_path, bytes_path = (_path(directory, name, position) for name in ("domain", "bytes"))
    domain_N, bytes_N = _create(domain_path, _DOMAIN_DTYPE, len(source)), _create(bytes_path, _BYTES_DTYPE, len(source))
    names = fill_domains_and_bytes(sidecar, source, domain_N, bytes_N)
    if corpus.is_view:
        places_K = source_sequences(corpus)
        for path, values_N in ((domain_path, domain_N), (bytes_path, bytes_N)):
            path.unlink()  # the map of the source's values stays
            _create(path, values_N.dtype, len(corpus))[:] = values_N[places_K]
    return names


def _write_seen(corpus: IndexedCorpus, seen_corpora: Sequence[IndexedCorpus], path: Path) -> int:
    """Mark the sequences whose tokens are also a sequence of a corpus that was seen; returns their number."""
    data = bin_path(corpus.prefix).resolve()
    pointers = [seen.pointers_N[seen.lengths_N > 0] for seen in seen_corpora if bin_path(seen.prefix).resolve() == data]
    is_seen_N = _create(path, _SEEN_DTYPE, len(corpus))
    if not pointers or not (pointers_S := np.sort(np.concatenate(pointers))).size:
        return 0
    num_seen = 0
    for start in range(0, len(corpus), CHUNK_SEQUENCES):
        pointers_N = corpus.pointers_N[start : start + CHUNK_SEQUENCES]
        found_N = np.minimum(np.searchsorted(pointers_S, pointers_N), len(pointers_S) - 1)
        seen_N = (pointers_S[found_N] == pointers_N) & (corpus.lengths_N[start : start + CHUNK_SEQUENCES] > 0)
        is_seen_N[start : start + CHUNK_SEQUENCES] = seen_N
        num_seen += int(seen_N.sum())
    return num_seen


def _create(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    """A new file of zeros, mapped for writing."""
    path.write_bytes(b"")
    return np.memmap(path, dtype, "w+", shape=(count,)) if count else np.zeros(0, dtype)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The sequences of one piece, one entry each.

    Attributes:
        piece: which.
        scores: theirs.
        value_N: of the rule's measure, float64; -inf where nothing was scored.
        order_N: what they are ordered by: the value, or the value with noise.
        length_N: tokens, int32; None where the rule does not ask.
        domain_N: place of the domain among `Attributes.domains`; None where the rule does not ask.
        is_eligible_N: whether they take part, bool.
    """

    piece: Piece
    scores: Scores
    value_N: np.ndarray
    order_N: np.ndarray
    length_N: np.ndarray | None
    domain_N: np.ndarray | None
    is_eligible_N: np.ndarray


class CandidateReader:
    """Reads candidates; any thread may call it.

    Args:
        excludes_seen: sequences that the reference has seen do not take part.
    """

    def __init__(self, corpus: ScoredCorpus, rule: Rule, attributes: Attributes, *, excludes_seen: bool) -> None:
        self._corpus = corpus
        self._rule = rule
        self._attributes = attributes
        self._excludes_seen = excludes_seen
        self._wanted_D = _wanted_domains(rule, attributes)

    @property
    def num_groups(self) -> int:
        return max(1, len(self._attributes.domains)) if self._rule.per_domain else 1

    def read(self, piece: Piece) -> Candidates:
        """Read one piece.

        Raises:
            InputError: the expression gives NaN.
            MiniPLMError: scores are damaged or do not belong together.
        """
        rule = self._rule
        scores = self._corpus.scores(piece)
        in_bytes = rule.measure.reduction == "bits-per-byte"
        value_N = rule.measure.values(
            scores.teacher_nll_N,
            scores.reference_nll_N,
            scores.num_scored_N,
            self._attributes.text_bytes(piece) if in_bytes else None,
        )
        if np.isnan(value_N).any():
            first = piece.start + int(np.argmax(np.isnan(value_N)))
            raise InputError(
                f"sequence {first} has no number to be ranked by (NaN): change the expression of --rank-by, such "
                "as log(max(x, 0.001)) for log(x)"
            )
        order_N = value_N
        if rule.sampling == "gumbel":
            order_N = perturbed(value_N, piece.ids_N, temperature=rule.temperature, seed=rule.seed)
        length_N = self._corpus.lengths(piece) if rule.counts_tokens or rule.min_tokens else None
        domain_N = self._attributes.domain(piece) if rule.needs_domains else None
        is_eligible_N = np.ones(piece.size, bool)
        if length_N is not None and rule.min_tokens:
            is_eligible_N &= length_N >= rule.min_tokens
        if domain_N is not None and not self._wanted_D.all():
            is_eligible_N &= self._wanted_D[domain_N]
        if self._excludes_seen:
            is_eligible_N &= ~self._attributes.is_seen(piece)
        return Candidates(
            piece=piece,
            scores=scores,
            value_N=value_N,
            order_N=order_N,
            length_N=length_N,
            domain_N=domain_N,
            is_eligible_N=is_eligible_N,
        )

    def ordered(self, candidates: Candidates, *, only_eligible: bool = True) -> Ordered:
        """What the search for thresholds sees of candidates."""
        ordered = Ordered(
            ids_N=candidates.piece.ids_N,
            value_N=candidates.order_N,
            size_N=candidates.length_N.astype(np.int64)  # type: ignore[union-attr]
            if self._rule.counts_tokens
            else None,
            group_N=candidates.domain_N if self._rule.per_domain else None,
        )
        if not only_eligible or candidates.is_eligible_N.all():
            return ordered
        return ordered.take(candidates.is_eligible_N)

    def kept(self, candidates: Candidates, thresholds: list[Threshold]) -> np.ndarray:
        """Whether each sequence is kept, bool."""
        kept_N = keeps(thresholds, self.ordered(candidates, only_eligible=False)) & candidates.is_eligible_N
        if self._rule.drop_negative:
            kept_N &= candidates.value_N >= 0
        return kept_N


def _wanted_domains(rule: Rule, attributes: Attributes) -> np.ndarray:
    """Whether each domain takes part, bool.

    Raises:
        InputError: a domain that the rule names does not occur.
    """
    if not rule.needs_domains:
        return np.ones(1, bool)
    for name in (*rule.keep_domains, *rule.drop_domains):
        if name not in attributes.domains:
            known = ", ".join(repr(domain) for domain in attributes.domains[:20] if domain) or "none"
            raise InputError(f"no sequence has the domain {name!r}: the corpus has {known}")
    kept = set(rule.keep_domains or attributes.domains) - set(rule.drop_domains)
    return np.array([name in kept for name in attributes.domains])
