"""The pass over all scores: counts, histograms, examples and overlaps, one piece of the corpus at a time."""

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.reports.histograms import Axis, Counts, Histograms, ValueCounts
from megatron_miniplm.reports.reopening import KeptCursor, ReopenedSelection
from megatron_miniplm.selection.candidates import Attributes, CandidateReader, Candidates
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.scored_corpus import Piece, map_in_order

#: Fine enough to tell other ratios from the histogram of values.
NUM_VALUE_BINS = 1 << 16
NUM_NLL_BINS = 256
NUM_LENGTH_BINS = 32
_NUM_SAMPLED_PIECES = 16

MOST_GAINED, LEAST_GAINED, JUST_KEPT, JUST_DROPPED = "most gained", "least gained", "just kept", "just dropped"
GROUPS = (MOST_GAINED, LEAST_GAINED, JUST_KEPT, JUST_DROPPED)


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sequence to show.

    Attributes:
        sequence: global id.
        value: what it is ranked by.
        teacher, reference: NLL in the unit of the measure; None if it is not known.
    """

    sequence: int
    value: float
    teacher: float | None
    reference: float | None
    num_tokens: int
    is_kept: bool


#: Key (greatest first), negative global id, example: tuples whose order is that of the examples.
Ranked = tuple[float, int, Example]


class BestExamples:
    """The examples with the greatest keys of a stream; among equal keys, the lowest ids."""

    def __init__(self, num_wanted: int) -> None:
        self.num_wanted = num_wanted
        self._best: list[Ranked] = []

    @property
    def bound(self) -> float:
        """Later sequences must have a greater key."""
        if len(self._best) < self.num_wanted:
            return -np.inf
        return self._best[-1][0] if self._best else np.inf

    def add(self, found: Sequence[Ranked]) -> None:
        """Consider the candidates of the next piece."""
        if found:
            self._best = heapq.nlargest(self.num_wanted, [*self._best, *found], key=lambda ranked: ranked[:2])

    def in_order(self) -> list[Example]:
        return [example for *_, example in self._best]


def best_places(key_N: np.ndarray, num_wanted: int, bound: float) -> np.ndarray:
    """Places of the greatest keys above a bound, int64; among equal keys, the first."""
    place_L = np.flatnonzero(key_N > bound)
    if num_wanted == 0 or not len(place_L):
        return place_L[:0]
    key_L = key_N[place_L]
    if len(place_L) > num_wanted:
        is_best_L = key_L >= np.partition(key_L, -num_wanted)[-num_wanted]
        place_L, key_L = place_L[is_best_L], key_L[is_best_L]
    return place_L[np.argsort(-key_L, kind="stable")[:num_wanted]]


@dataclass(kw_only=True)
class PrefixCounts(Counts):
    """Counts by prefix, with sums and numbers of the finite values."""

    value_sums: np.ndarray
    kept_value_sums: np.ndarray
    num_scored: np.ndarray
    num_kept_scored: np.ndarray


@dataclass(kw_only=True)
class Tally:
    """What the pass has found.

    Attributes:
        lengths: by the number of binary digits of the number of tokens.
        overlaps: of each other selection; `kept` there means that this selection keeps the sequence too.
        num_eligible: sequences that may be kept, scored or not.
    """

    prefixes: PrefixCounts
    lengths: Counts
    histograms: Histograms
    overlaps: list[Counts]
    num_eligible: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def add(self, part: "Tally", prefix: int) -> None:
        """Add the tally of one piece of a prefix."""
        self.prefixes.add(part.prefixes, slice(prefix, prefix + 1))
        self.lengths.add(part.lengths)
        self.histograms.values.add(part.histograms.values)
        np.add(self.histograms.nll_TRK, part.histograms.nll_TRK, out=self.histograms.nll_TRK)
        self.num_eligible += part.num_eligible
        for overlap, found in zip(self.overlaps, part.overlaps, strict=True):
            overlap.add(found)


@dataclass(frozen=True, kw_only=True)
class _ScoredPiece:
    """One piece of the corpus with all that is counted of it; NLLs in the unit of the measure, float64.

    Attributes:
        kept_SN: whether each selection keeps each sequence, the reported one first.
    """

    candidates: Candidates
    length_N: np.ndarray
    kept_SN: list[np.ndarray]
    teacher_N: np.ndarray | None
    reference_N: np.ndarray | None


class TallyPass:
    """Reads the scores of a selection's corpus: first a sample for the ranges, then all.

    Args:
        attributes: those that the rule needs.
        others: selections of the same corpus.
        num_examples: of each group.
    """

    def __init__(
        self, reopened: ReopenedSelection, attributes: Attributes, others: Sequence[Selection], num_examples: int
    ) -> None:
        self._reopened = reopened
        self._attributes = attributes
        self._selections = [reopened.selection, *others]
        # Noise decides which sequences a sample keeps, but it tells nothing about them.
        rule = replace(reopened.rule, sampling="top")
        self._reader = CandidateReader(reopened.corpus, rule, attributes, excludes_seen=bool(reopened.seen))
        self._best = {name: BestExamples(num_examples) for name in GROUPS}
        lowest = [math.nan if value is None else value for value in reopened.lowest_values]
        self._lowest_D = np.array(lowest) if lowest else None

    def run(self, advance: Callable[[int], None]) -> Tally:
        """Read everything.

        Args:
            advance: called with the number of sequences after each piece.

        Raises:
            MiniPLMError: scores or indices are damaged.
        """
        tally = Tally(
            prefixes=PrefixCounts.zeros(len(self._reopened.corpus.corpora)),
            lengths=Counts.zeros(NUM_LENGTH_BINS + 1),
            histograms=self._empty_histograms(),
            overlaps=[Counts.zeros(1) for _ in self._selections[1:]],
        )

        def look(found: tuple[Piece, list[np.ndarray]]) -> tuple[Piece, Tally, dict[str, list[Ranked]]]:
            one = self._read(*found)
            return found[0], self._tally(one, tally.histograms), self._examples(one)

        for piece, part, examples in map_in_order(look, self._kept_pieces()):
            tally.add(part, piece.prefix)
            for name, found in examples.items():
                self._best[name].add(found)
            advance(piece.size)
        tally.examples = {name: best.in_order() for name, best in self._best.items()}
        return tally

    def _kept_pieces(self) -> Iterator[tuple[Piece, list[np.ndarray]]]:
        """All pieces in order, and by selection the places in the piece that it keeps."""
        prefix, cursors = -1, list[KeptCursor]()
        for piece in self._reopened.corpus.pieces():
            if piece.prefix != prefix:
                prefix = piece.prefix
                cursors = [KeptCursor(selection.prefixes[prefix]) for selection in self._selections]
            yield piece, [cursor.take(piece.first + piece.size) - piece.first for cursor in cursors]

    def _empty_histograms(self) -> Histograms:
        """Histograms with the ranges of a sample."""
        pieces = self._reopened.corpus.pieces()
        step = max(1, math.ceil(len(pieces) / _NUM_SAMPLED_PIECES))
        columns: list[list[np.ndarray]] = [[np.zeros(0)] for _ in range(3)]
        for one in map_in_order(lambda piece: self._read(piece, []), pieces[::step]):
            for column, value_N in zip(columns, (one.candidates.value_N, one.teacher_N, one.reference_N), strict=True):
                if value_N is not None:
                    column.append(value_N)
        values, teacher, reference = map(np.concatenate, columns)
        measure = self._reopened.rule.measure
        return Histograms.zeros(
            measure,
            Axis.covering(values, NUM_VALUE_BINS, with_zero=measure.is_difference),
            Axis.covering(teacher, NUM_NLL_BINS) if self._reopened.has_teacher else None,
            Axis.covering(reference, NUM_NLL_BINS) if self._reopened.has_reference else None,
        )

    def _read(self, piece: Piece, places_of: Sequence[np.ndarray]) -> _ScoredPiece:
        candidates = self._reader.read(piece)
        scores, reduction = candidates.scores, self._reopened.rule.measure.reduction
        bytes_N = self._attributes.text_bytes(piece) if reduction == "bits-per-byte" else None

        def nll(name: str) -> np.ndarray:
            measure = Measure(expression=name, reduction=reduction)
            return measure.values(scores.teacher_nll_N, scores.reference_nll_N, scores.num_scored_N, bytes_N)

        kept_SN = []
        for place_K in places_of:
            kept_SN.append(np.zeros(piece.size, bool))
            kept_SN[-1][place_K] = True
        length_N = candidates.length_N
        return _ScoredPiece(
            candidates=candidates,
            length_N=self._reopened.corpus.lengths(piece) if length_N is None else length_N,
            kept_SN=kept_SN,
            teacher_N=nll("teacher") if self._reopened.has_teacher else None,
            reference_N=nll("reference") if self._reopened.has_reference else None,
        )

    def _tally(self, one: _ScoredPiece, empty: Histograms) -> Tally:
        """The tally of one piece, as of a corpus with one prefix."""
        length_N, (kept_N, *others_N) = one.length_N, one.kept_SN
        value_N, eligible_N = one.candidates.value_N, one.candidates.is_eligible_N
        finite_N = np.isfinite(value_N)
        sum_N = value_N if finite_N.all() else np.where(finite_N, value_N, 0.0)
        zero_N = np.zeros(len(length_N), np.int64)
        prefixes = PrefixCounts.of(
            zero_N,
            1,
            length_N,
            kept_N,
            value_sums=np.array([sum_N.sum()]),
            kept_value_sums=np.array([sum_N.sum(where=kept_N)]),
            num_scored=np.array([np.count_nonzero(finite_N)]),
            num_kept_scored=np.array([np.count_nonzero(finite_N & kept_N)]),
        )
        return Tally(
            prefixes=prefixes,
            lengths=Counts.of(_length_class(length_N), NUM_LENGTH_BINS + 1, length_N, kept_N),
            histograms=replace(
                empty,
                values=_value_counts(empty.axis, value_N, sum_N, eligible_N, length_N, kept_N),
                nll_TRK=_joint(one, empty),
            ),
            overlaps=[Counts.of(zero_N[other_N], 1, length_N[other_N], kept_N[other_N]) for other_N in others_N],
            num_eligible=int(np.count_nonzero(eligible_N)),
        )

    def _examples(self, one: _ScoredPiece) -> dict[str, list[Ranked]]:
        """The examples of one piece that may be among the best, by group."""
        candidates = one.candidates

        def ranked(place: int, key: float) -> Ranked:
            sequence = candidates.piece.start + place
            example = Example(
                sequence=sequence,
                value=float(candidates.value_N[place]),
                teacher=None if one.teacher_N is None else float(one.teacher_N[place]),
                reference=None if one.reference_N is None else float(one.reference_N[place]),
                num_tokens=int(one.length_N[place]),
                is_kept=bool(one.kept_SN[0][place]),
            )
            return key, -sequence, example

        return {
            name: [
                ranked(place, float(key_N[place]))
                for place in best_places(key_N, self._best[name].num_wanted, self._best[name].bound).tolist()
            ]
            for name, key_N in self._group_keys(candidates, one.kept_SN[0]).items()
        }

    def _group_keys(self, candidates: Candidates, kept_N: np.ndarray) -> dict[str, np.ndarray]:
        """The key by which each group takes its examples, float64; -inf for sequences that are not in the group."""
        value_N = candidates.value_N
        finite_N = np.isfinite(value_N)
        keys = {
            MOST_GAINED: np.where(finite_N & kept_N, value_N, -np.inf),
            LEAST_GAINED: np.where(finite_N, -value_N, -np.inf),
        }
        if self._lowest_D is not None:
            domain_N = candidates.domain_N if self._reopened.rule.per_domain else None
            with np.errstate(invalid="ignore"):
                above_N = value_N - (self._lowest_D[:1] if domain_N is None else self._lowest_D[domain_N])
            is_above_N = finite_N & kept_N & (above_N >= 0)
            is_below_N = finite_N & ~kept_N & candidates.is_eligible_N & (above_N <= 0)
            keys[JUST_KEPT] = np.where(is_above_N, -above_N, -np.inf)
            keys[JUST_DROPPED] = np.where(is_below_N, above_N, -np.inf)
        return keys


def _value_counts(
    axis: Axis,
    value_N: np.ndarray,
    sum_N: np.ndarray,
    eligible_N: np.ndarray,
    length_N: np.ndarray,
    kept_N: np.ndarray,
) -> ValueCounts:
    """Counts of the scored sequences of a piece by value; `sum_N` are the finite values, 0 for the others."""
    scored_N = value_N > -np.inf
    if not scored_N.all():
        value_N, sum_N, eligible_N, length_N, kept_N = (
            column[scored_N] for column in (value_N, sum_N, eligible_N, length_N, kept_N)
        )
    counter_N = all_counter_N = axis.counters(value_N)
    all_length_N = length_N
    if not eligible_N.all():
        counter_N, length_N, sum_N = (column[eligible_N] for column in (counter_N, length_N, sum_N))
    return ValueCounts.of(
        all_counter_N,
        axis.num_counters,
        all_length_N,
        kept_N,
        eligible=np.bincount(counter_N, minlength=axis.num_counters),
        eligible_tokens=np.bincount(counter_N, length_N, axis.num_counters).astype(np.int64),
        eligible_sums=np.bincount(counter_N, sum_N, axis.num_counters),
    )


def _length_class(length_N: np.ndarray) -> np.ndarray:
    """Binary digits of each length, int64: 0 of 0, 1 of 1, 2 of 2 and 3, ...; read off the exponent of a float64."""
    class_N = (length_N.astype(np.float64).view(np.int64) >> 52) - 1022
    return np.maximum(class_N, 0)


def _joint(one: _ScoredPiece, empty: Histograms) -> np.ndarray:
    """Scored sequences by the counters of teacher and reference NLL; an NLL that is not known has one counter."""
    kept_N = one.kept_SN[0]
    place_N = np.zeros(len(kept_N), np.int64)
    scored_N = np.ones(len(kept_N), bool)
    for nll_N, axis in ((one.teacher_N, empty.teacher), (one.reference_N, empty.reference)):
        if nll_N is not None and axis is not None:
            place_N = place_N * axis.num_counters + axis.counters(nll_N)
            scored_N &= nll_N > -np.inf
    place_N = 2 * place_N + kept_N
    if not scored_N.all():
        place_N = place_N[scored_N]
    return np.bincount(place_N, minlength=empty.nll_TRK.size).reshape(empty.nll_TRK.shape)
