"""Where sequences come from, told by the sidecars: counts by domain and by source file, and the texts of examples."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa

from megatron_miniplm.artifacts.lineage import relative_to_cwd
from megatron_miniplm.artifacts.selections import SelectedPrefix
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.errors import CorruptArtifactError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.pieces import NO_DOMAIN
from megatron_miniplm.indexed.sidecar import Sidecar
from megatron_miniplm.indexed.view import data_prefix, source_sequences
from megatron_miniplm.reports.histograms import Counts
from megatron_miniplm.reports.provenance import decoded_text, passages_of
from megatron_miniplm.reports.reopening import KeptCursor, ReopenedSelection
from megatron_miniplm.reports.tally import Example
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.selection.scored_corpus import ScoredCorpus

MAX_CHARACTERS = 1200
_MAX_SHOWN_IDS = 200


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """What is shown of one sequence; everything in it comes from the data.

    Attributes:
        prefix: name of its prefix; `index`: of the sequence in the prefix.
        text: at most MAX_CHARACTERS of it; `is_cut`: whether there is more.
        how: where the text comes from, if not from the original file.
        places: `source:line` of its passages.
        domain, id: of its first passage; empty if it has none.
    """

    example: Example
    prefix: str
    index: int
    text: str
    is_cut: bool
    how: str = ""
    places: tuple[str, ...] = ()
    domain: str = ""
    id: str = ""


def read_excerpts(
    reopened: ReopenedSelection, examples: Mapping[str, Sequence[Example]], encoder: TextEncoder | None
) -> dict[str, list[Excerpt]]:
    """The texts of all examples, by group."""
    found: dict[str, list[Excerpt]] = {}
    with Progress(sum(map(len, examples.values())), " examples", title="reading texts") as progress:
        for group, ones in examples.items():
            found[group] = []
            for example in ones:
                found[group].append(_read_excerpt(reopened.corpus, example, encoder))
                progress.advance(1)
    return found


def _read_excerpt(scored: ScoredCorpus, example: Example, encoder: TextEncoder | None) -> Excerpt:
    """The text of an example, decoded if the original file is gone, or its token ids without an encoder."""
    prefix = bisect_right(scored.starts_P, example.sequence, hi=len(scored.corpora)) - 1
    corpus, index = scored.corpora[prefix], example.sequence - scored.starts_P[prefix]
    name = corpus.prefix.name
    try:
        passages = passages_of(corpus, index)
    except MiniPLMError:
        num_tokens = int(corpus.lengths_N[index])
        if encoder is None:
            num_shown, how = _MAX_SHOWN_IDS, "token ids"
            text = " ".join(map(str, corpus.sequence(index)[:num_shown].tolist()))
        else:
            num_shown, how = 2 * (MAX_CHARACTERS + 1), "decoded from the tokens"
            text = decoded_text(corpus, index, encoder, MAX_CHARACTERS + 1)
        is_cut = num_tokens > num_shown or len(text) > MAX_CHARACTERS
        return Excerpt(example=example, prefix=name, index=index, text=text[:MAX_CHARACTERS], is_cut=is_cut, how=how)
    text = "\n\n".join(passage.text for passage in passages)
    return Excerpt(
        example=example,
        prefix=name,
        index=index,
        text=text[:MAX_CHARACTERS],
        is_cut=len(text) > MAX_CHARACTERS,
        places=tuple(f"{Path(passage.source)}:{passage.line}" for passage in passages),
        domain=(passages[0].domain or "") if passages else "",
        id=(passages[0].id or "") if passages else "",
    )


@dataclass(kw_only=True)
class Origins:
    """Counts by name. A sequence from several sources or domains counts in each; each of its tokens counts once.

    Attributes:
        domains: by domain, NO_DOMAIN for sequences without.
        sources: by source file, relative to the working directory if it lies below.
        without_sidecar: prefixes that do not say where their sequences come from.
    """

    domains: dict[str, Counts] = field(default_factory=dict)
    sources: dict[str, Counts] = field(default_factory=dict)
    without_sidecar: list[str] = field(default_factory=list)


def collect_origins(reopened: ReopenedSelection) -> Origins:
    """Read every sidecar once, one row group at a time.

    Raises:
        CorruptArtifactError: a sidecar belongs to another corpus.
    """
    origins, corpora = Origins(), reopened.corpus.corpora
    sidecars = [Sidecar.of(corpus) for corpus in corpora]
    num_rows = sum(sidecar.num_pieces for sidecar in sidecars if sidecar is not None)
    with Progress(num_rows, " passages", title="reading sidecars") as progress:
        for corpus, prefix, sidecar in zip(corpora, reopened.selection.prefixes, sidecars, strict=True):
            if sidecar is not None:
                _collect(origins, corpus, prefix, sidecar, progress.advance)
                corpus.forget_pages()
            elif len(corpus):
                origins.without_sidecar.append(prefix.path.name)
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
            weights = (there_P * is_new_P, there_P * num_tokens_P, kept_P * is_new_P, kept_P * num_tokens_P)
            counts_4C = np.stack([np.bincount(code_P, weight_P, len(names)) for weight_P in weights]).astype(np.int64)
            for code, label in enumerate(names):
                if counts_4C[:2, code].any():
                    found = dict(zip([one.name for one in fields(Counts)], counts_4C[:, code, None], strict=True))
                    counts_of.setdefault(label, Counts.zeros(1)).add(Counts(**found))
            last_code[name, names[code_P[-1]]] = stop - 1
        last = stop - 1
        advance(len(sequence_P))


def _decoded(column: pa.ChunkedArray, sidecar: Sidecar | None) -> tuple[list[str], np.ndarray]:
    """The names in a column, and the place of each row's name among them, int64."""
    array = column.combine_chunks()
    found = [NO_DOMAIN if name is None else name for name in array.dictionary.to_pylist()]
    if sidecar is not None:
        found = [str(relative_to_cwd(sidecar.source_path(name))) for name in found]
    code_P = array.indices.fill_null(len(found)).to_numpy(zero_copy_only=False).astype(np.int64)
    return [*found, NO_DOMAIN], code_P


class _Multiplicity:
    """How often sequences of the data are in a corpus, which may be a view of it, and how often they are kept."""

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
