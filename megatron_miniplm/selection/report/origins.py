"""How much is kept of each domain and of each source file, from the sidecars of the corpora."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from megatron_miniplm.artifacts.lineage import relative_to_cwd
from megatron_miniplm.artifacts.selections import SelectedPrefix
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.pieces import NO_DOMAIN
from megatron_miniplm.indexed.sidecar import Sidecar
from megatron_miniplm.indexed.view import data_prefix, source_sequences
from megatron_miniplm.selection.report.kept import KeptCursor
from megatron_miniplm.selection.report.tally import Counts


@dataclass(kw_only=True)
class Origins:
    """Counts by name; a sequence with passages of several sources or domains counts in each, its tokens once.

    Attributes:
        domains: by domain, NO_DOMAIN for what has none.
        sources: by source file, relative to the working directory where it lies below it.
        without_sidecar: prefixes that do not say where their sequences come from.
    """

    domains: dict[str, Counts] = field(default_factory=dict)
    sources: dict[str, Counts] = field(default_factory=dict)
    without_sidecar: list[str] = field(default_factory=list)


def sidecars_of(corpora: Sequence[IndexedCorpus]) -> list[Sidecar | None]:
    return [Sidecar.of(corpus) for corpus in corpora]


def collect_origins(
    corpora: Sequence[IndexedCorpus],
    prefixes: Sequence[SelectedPrefix],
    sidecars: Sequence[Sidecar | None],
    advance: Callable[[int], None],
) -> Origins:
    """Read every sidecar once, a row group at a time.

    Args:
        advance: called with every number of rows that were read.

    Raises:
        CorruptArtifactError: a sidecar is of another corpus.
    """
    origins = Origins()
    for corpus, prefix, sidecar in zip(corpora, prefixes, sidecars, strict=True):
        if sidecar is None:
            if len(corpus):
                origins.without_sidecar.append(str(prefix.path.name))
            continue
        _collect(origins, corpus, prefix, sidecar, advance)
        corpus.forget_pages()
    return origins


def _collect(
    origins: Origins,
    corpus: IndexedCorpus,
    prefix: SelectedPrefix,
    sidecar: Sidecar,
    advance: Callable[[int], None],
) -> None:
    multiplicity = _Multiplicity(corpus, prefix)
    last = -1
    last_code: dict[tuple[str, str], int] = {}
    for table in sidecar.tables(["sequence", "source", "num_tokens", "domain"]):
        sequence_P, num_tokens_P = table["sequence"].to_numpy(), table["num_tokens"].to_numpy()
        if not len(sequence_P):
            continue
        first, stop = int(sequence_P[0]), int(sequence_P[-1]) + 1
        if first < last or (np.diff(sequence_P) < 0).any() or stop > multiplicity.num_source_sequences:
            raise CorruptArtifactError(
                f"{sidecar.path} has sequences up to {stop - 1} or out of order, {data_prefix(corpus.prefix)} has "
                f"{multiplicity.num_source_sequences}: it belongs to another corpus; copy both, or preprocess, again"
            )
        there_S, kept_S = multiplicity.between(first, stop)
        there_P, kept_P = there_S[sequence_P - first], kept_S[sequence_P - first]
        continues_P = np.append(first == last, sequence_P[1:] == sequence_P[:-1])
        for name, counts_of in (("source", origins.sources), ("domain", origins.domains)):
            names, code_P = _decoded(table[name], sidecar if name == "source" else None)
            code_before_P = np.append(-1, code_P[:-1])
            if continues_P[0] and last_code.get((name, names[code_P[0]])) == last:
                code_before_P[0] = code_P[0]
            is_new_P = ~(continues_P & (code_P == code_before_P))
            found = _counts(code_P, len(names), is_new_P, num_tokens_P, there_P, kept_P)
            for code, label in enumerate(names):
                one = Counts(**{key: getattr(found, key)[code : code + 1] for key in Counts.__dataclass_fields__})
                if one.sequences[0] or one.tokens[0]:
                    counts_of.setdefault(label, Counts.zeros(1)).add(one)
            last_code[name, names[code_P[-1]]] = stop - 1
        last = stop - 1
        advance(len(sequence_P))


def _counts(
    code_P: np.ndarray,
    num_codes: int,
    is_new_P: np.ndarray,
    num_tokens_P: np.ndarray,
    there_P: np.ndarray,
    kept_P: np.ndarray,
) -> Counts:
    """Counts by code of pieces, each as often as its sequence is in the corpus, and among the kept."""

    def summed(weight_P: np.ndarray) -> np.ndarray:
        return np.bincount(code_P, weight_P, num_codes).astype(np.int64)

    return Counts(
        sequences=summed(there_P * is_new_P),
        tokens=summed(there_P * num_tokens_P),
        kept_sequences=summed(kept_P * is_new_P),
        kept_tokens=summed(kept_P * num_tokens_P),
    )


def _decoded(column: pa.ChunkedArray, sidecar: Sidecar | None) -> tuple[list[str], np.ndarray]:
    """The names in a column, and the place of each row's among them, int64."""
    array = column.combine_chunks()
    found = [NO_DOMAIN if name is None else name for name in array.dictionary.to_pylist()]
    if sidecar is not None:
        found = [str(relative_to_cwd(sidecar.source_path(name))) for name in found]
    code_P = array.indices.fill_null(len(found)).to_numpy(zero_copy_only=False).astype(np.int64)
    return [*found, NO_DOMAIN], code_P


class _Multiplicity:
    """How often sequences of the data are in a corpus, which may be a view of it, and among the kept."""

    def __init__(self, corpus: IndexedCorpus, prefix: SelectedPrefix) -> None:
        self._cursor = KeptCursor(prefix)
        self._carried_K = np.zeros(0, np.int64)
        self._taken = 0
        self._places: tuple[np.ndarray, np.ndarray] | None = None
        self.num_source_sequences = len(corpus)
        if corpus.is_view:
            self.num_source_sequences = len(IndexedCorpus.open(data_prefix(corpus.prefix)))
            place_N = source_sequences(corpus)
            self._places = (np.sort(place_N), np.sort(place_N[prefix.indices()]))

    def between(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each sequence from `first` to before `stop`, int64; ranges ascend and may share one sequence."""
        if self._places is not None:
            return tuple(  # type: ignore[return-value]
                np.bincount(place_S[slice(*np.searchsorted(place_S, (first, stop)))] - first, minlength=stop - first)
                for place_S in self._places
            )
        if stop > self._taken:
            self._carried_K = np.concatenate([self._carried_K, self._cursor.take(stop)])
            self._taken = stop
        self._carried_K = self._carried_K[np.searchsorted(self._carried_K, first) :]
        kept_S = np.bincount(self._carried_K - first, minlength=stop - first)
        return np.ones(stop - first, np.int64), kept_S
