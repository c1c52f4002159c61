"""The pass over all scores: counts, histograms, examples and overlaps, a piece of the corpus at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.selection.attributes import Attributes
from megatron_miniplm.selection.candidates import CandidateReader, Candidates
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.report.axes import Axis
from megatron_miniplm.selection.report.examples import (
    GROUPS,
    BestExamples,
    Example,
    Ranked,
    best_places,
    group_keys,
)
from megatron_miniplm.selection.report.kept import KeptPiece, kept_pieces
from megatron_miniplm.selection.report.opening import ReportedSelection
from megatron_miniplm.selection.scored_corpus import map_in_order

#: The range of values is cut so fine that other ratios can be told from it.
NUM_VALUE_BINS = 1 << 16
NUM_NLL_BINS = 256
NUM_LENGTH_BINS = 32
_NUM_SAMPLED_PIECES = 16


@dataclass(kw_only=True)
class Counts:
    """How much there is and how much is kept, by some class; all (C,) int64."""

    sequences: np.ndarray
    tokens: np.ndarray
    kept_sequences: np.ndarray
    kept_tokens: np.ndarray

    @classmethod
    def zeros(cls, num_classes: int) -> "Counts":
        return cls(**{name: np.zeros(num_classes, np.int64) for name in cls.__dataclass_fields__})

    @classmethod
    def of(cls, class_N: np.ndarray, num_classes: int, length_N: np.ndarray, kept_N: np.ndarray) -> "Counts":
        """Count sequences by the class of each.

        Args:
            kept_N: bool.
        """
        both_N = 2 * class_N + kept_N
        sequences_CK = np.bincount(both_N, minlength=2 * num_classes).reshape(-1, 2)
        # float64 counts exactly up to 2 ** 53
        tokens_CK = np.bincount(both_N, length_N, 2 * num_classes).astype(np.int64).reshape(-1, 2)
        return cls(
            sequences=sequences_CK.sum(axis=1),
            tokens=tokens_CK.sum(axis=1),
            kept_sequences=sequences_CK[:, 1],
            kept_tokens=tokens_CK[:, 1],
        )

    def add(self, other: "Counts", at: int | slice = slice(None)) -> None:
        for name in self.__dataclass_fields__:
            getattr(self, name)[at] += getattr(other, name)


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Ranges of the histograms.

    Attributes:
        value: of what is ranked by.
        teacher, reference: of NLLs in the unit of the reduction; None where a model's are not known.
    """

    value: Axis
    teacher: Axis | None
    reference: Axis | None

    @property
    def nll_shape(self) -> tuple[int, int]:
        """Counters of the joint histogram of teacher and reference."""
        return tuple(1 if axis is None else axis.num_counters for axis in (self.teacher, self.reference))  # type: ignore[return-value]


@dataclass(kw_only=True)
class Overlap:
    """Another selection of the same corpus.

    Attributes:
        sequences, tokens: that it keeps.
        common_sequences, common_tokens: that both keep.
    """

    sequences: int = 0
    tokens: int = 0
    common_sequences: int = 0
    common_tokens: int = 0


@dataclass(kw_only=True)
class Tally:
    """What the pass has found.

    Attributes:
        prefixes: by prefix.
        lengths: by the number of binary digits of the number of tokens.
        values: of scored sequences by counter of `axes.value`; `value_eligible_*` of those that may be kept, with the
            sum of their finite values.
        num_eligible: that may be kept, scored or not.
        nll_TRK: scored sequences by counter of teacher and reference, and whether they are kept.
        value_sum_P, kept_value_sum_P, num_scored_P, num_kept_scored_P: of finite values, by prefix.
    """

    axes: Axes
    prefixes: Counts
    lengths: Counts
    values: Counts
    value_eligible: np.ndarray
    value_eligible_tokens: np.ndarray
    value_eligible_sums: np.ndarray
    nll_TRK: np.ndarray
    value_sum_P: np.ndarray
    kept_value_sum_P: np.ndarray
    num_scored_P: np.ndarray
    num_kept_scored_P: np.ndarray
    num_eligible: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)

    @classmethod
    def empty(cls, axes: Axes, num_prefixes: int, num_others: int) -> "Tally":
        counters = axes.value.num_counters
        return cls(
            axes=axes,
            prefixes=Counts.zeros(num_prefixes),
            lengths=Counts.zeros(NUM_LENGTH_BINS + 1),
            values=Counts.zeros(counters),
            value_eligible=np.zeros(counters, np.int64),
            value_eligible_tokens=np.zeros(counters, np.int64),
            value_eligible_sums=np.zeros(counters),
            nll_TRK=np.zeros((*axes.nll_shape, 2), np.int64),
            value_sum_P=np.zeros(num_prefixes),
            kept_value_sum_P=np.zeros(num_prefixes),
            num_scored_P=np.zeros(num_prefixes, np.int64),
            num_kept_scored_P=np.zeros(num_prefixes, np.int64),
            overlaps=[Overlap() for _ in range(num_others)],
        )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """One piece, with what every part of the tally asks of it; NLLs in the unit of the reduction, float64."""

    kept_piece: KeptPiece
    candidates: Candidates
    length_N: np.ndarray
    kept_N: np.ndarray
    teacher_N: np.ndarray | None
    reference_N: np.ndarray | None

    @property
    def finite_N(self) -> np.ndarray:
        return np.isfinite(self.candidates.value_N)


class TallyPass:
    """Reads the scores of a selection's corpus twice at most: a sample for the ranges, then all.

    Args:
        attributes: as the rule asks for them.
        others: selections of the same corpus.
        num_examples: of each group.
    """

    def __init__(
        self, reported: ReportedSelection, attributes: Attributes, others: Sequence[Selection], num_examples: int
    ) -> None:
        self._reported = reported
        self._attributes = attributes
        self._selections = [reported.selection, *others]
        # Noise decides what a sample keeps, but says nothing of the sequences.
        rule = replace(reported.rule, sampling="top")
        self._reader = CandidateReader(reported.corpus, rule, attributes, excludes_seen=bool(reported.seen))
        self._best = {name: BestExamples(num_examples) for name in GROUPS}

    def run(self, advance: Callable[[int], None]) -> Tally:
        """Read everything.

        Args:
            advance: called with every number of sequences that were read.

        Raises:
            MiniPLMError: scores or indices are damaged.
        """
        corpus = self._reported.corpus
        axes = self._axes()
        tally = Tally.empty(axes, len(corpus.corpora), len(self._selections) - 1)

        def look(kept_piece: KeptPiece) -> tuple[_Seen, Tally, dict[str, list[Ranked]]]:
            seen = self._see(kept_piece)
            return seen, self._tally(seen, axes), self._examples(seen)

        for seen, part, examples in map_in_order(look, kept_pieces(self._selections, corpus.pieces())):
            _add(tally, part, seen.kept_piece.piece.prefix)
            for name, found in examples.items():
                self._best[name].add(found)
            advance(seen.kept_piece.piece.size)
        tally.examples = {name: best.in_order() for name, best in self._best.items()}
        return tally

    def _axes(self) -> Axes:
        pieces = self._reported.corpus.pieces()
        step = max(1, math.ceil(len(pieces) / _NUM_SAMPLED_PIECES))
        nothing = [np.zeros(0, np.int64)] * len(self._selections)
        sampled = [KeptPiece(piece=piece, places_of=tuple(nothing)) for piece in pieces[::step]]
        columns: list[list[np.ndarray]] = [[], [], []]
        for seen in map_in_order(self._see, sampled):
            for column, value_N in zip(
                columns, (seen.candidates.value_N, seen.teacher_N, seen.reference_N), strict=True
            ):
                if value_N is not None:
                    column.append(value_N)
        values, teacher, reference = (np.concatenate([np.zeros(0), *column]) for column in columns)
        is_difference = self._reported.rule.measure.is_difference
        return Axes(
            value=Axis.covering(values, NUM_VALUE_BINS, with_zero=is_difference),
            teacher=Axis.covering(teacher, NUM_NLL_BINS) if self._reported.has_teacher else None,
            reference=Axis.covering(reference, NUM_NLL_BINS) if self._reported.has_reference else None,
        )

    def _see(self, kept_piece: KeptPiece) -> _Seen:
        reported, piece = self._reported, kept_piece.piece
        candidates = self._reader.read(piece)
        scores, reduction = candidates.scores, reported.rule.measure.reduction
        bytes_N = self._attributes.text_bytes(piece) if reduction == "bits-per-byte" else None
        of_models = []
        for name, is_there in (("teacher", reported.has_teacher), ("reference", reported.has_reference)):
            measure = Measure(expression=name, reduction=reduction)
            of_models.append(
                measure.values(scores.teacher_nll_N, scores.reference_nll_N, scores.num_scored_N, bytes_N)
                if is_there
                else None
            )
        length_N = candidates.length_N
        return _Seen(
            kept_piece=kept_piece,
            candidates=candidates,
            length_N=reported.corpus.lengths(piece) if length_N is None else length_N,
            kept_N=kept_piece.mask(0),
            teacher_N=of_models[0],
            reference_N=of_models[1],
        )

    def _tally(self, seen: _Seen, axes: Axes) -> Tally:
        """The tally of one piece, as that of a corpus with one prefix."""
        tally = Tally.empty(axes, 1, len(self._selections) - 1)
        length_N, kept_N, finite_N = seen.length_N, seen.kept_N, seen.finite_N
        zero_N = np.zeros(len(length_N), np.int64)
        tally.prefixes = Counts.of(zero_N, 1, length_N, kept_N)
        tally.lengths = Counts.of(_length_class(length_N), NUM_LENGTH_BINS + 1, length_N, kept_N)
        tally.overlaps = [
            _overlap(seen.kept_piece.mask(number), kept_N, length_N) for number in range(1, len(self._selections))
        ]
        value_N, eligible_N = seen.candidates.value_N, seen.candidates.is_eligible_N
        tally.num_eligible = int(np.count_nonzero(eligible_N))
        scored_N = value_N > -np.inf
        if not scored_N.all():
            length_N, kept_N, finite_N, value_N, eligible_N = (
                column[scored_N] for column in (length_N, kept_N, finite_N, value_N, eligible_N)
            )
        place_N, num_counters = axes.value.counters(value_N), axes.value.num_counters
        tally.values = Counts.of(place_N, num_counters, length_N, kept_N)
        if not finite_N.all():
            value_N = np.where(finite_N, value_N, 0.0)  # +inf
        tally.value_sum_P[0] = value_N.sum()
        tally.kept_value_sum_P[0] = value_N.sum(where=kept_N)
        tally.num_scored_P[0] = np.count_nonzero(finite_N)
        tally.num_kept_scored_P[0] = np.count_nonzero(finite_N & kept_N)
        if not eligible_N.all():
            place_N, length_N, value_N = (column[eligible_N] for column in (place_N, length_N, value_N))
        tally.value_eligible = np.bincount(place_N, minlength=num_counters)
        tally.value_eligible_tokens = np.bincount(place_N, length_N, num_counters).astype(np.int64)
        tally.value_eligible_sums = np.bincount(place_N, value_N, num_counters)
        tally.nll_TRK = _joint(seen, axes)
        return tally

    def _examples(self, seen: _Seen) -> dict[str, list[Ranked]]:
        """Those of one piece that may be among the best."""
        candidates = seen.candidates
        keys = group_keys(candidates.value_N, seen.kept_N, candidates.is_eligible_N, self._lowest(candidates))
        return {
            name: [
                self._ranked(seen, int(place), float(key_N[place]))
                for place in best_places(key_N, self._best[name].num_wanted, self._best[name].bound)
            ]
            for name, key_N in keys.items()
        }

    def _lowest(self, candidates: Candidates) -> np.ndarray | None:
        lowest = [math.nan if value is None else value for value in self._reported.lowest_values]
        if not lowest:
            return None
        domain_N = candidates.domain_N if self._reported.rule.per_domain else None
        return np.array(lowest)[:1] if domain_N is None else np.array(lowest)[domain_N]

    @staticmethod
    def _ranked(seen: _Seen, place: int, key: float) -> Ranked:
        sequence = seen.kept_piece.piece.start + place
        return (
            key,
            -sequence,
            Example(
                sequence=sequence,
                value=float(seen.candidates.value_N[place]),
                teacher=None if seen.teacher_N is None else float(seen.teacher_N[place]),
                reference=None if seen.reference_N is None else float(seen.reference_N[place]),
                num_tokens=int(seen.length_N[place]),
                is_kept=bool(seen.kept_N[place]),
            ),
        )


def _add(tally: Tally, part: Tally, prefix: int) -> None:
    tally.prefixes.add(part.prefixes, slice(prefix, prefix + 1))
    tally.lengths.add(part.lengths)
    tally.values.add(part.values)
    tally.value_eligible += part.value_eligible
    tally.value_eligible_tokens += part.value_eligible_tokens
    tally.value_eligible_sums += part.value_eligible_sums
    tally.nll_TRK += part.nll_TRK
    tally.num_eligible += part.num_eligible
    for name in ("value_sum_P", "kept_value_sum_P", "num_scored_P", "num_kept_scored_P"):
        getattr(tally, name)[prefix] += getattr(part, name)[0]
    for overlap, found in zip(tally.overlaps, part.overlaps, strict=True):
        for name in Overlap.__dataclass_fields__:
            setattr(overlap, name, getattr(overlap, name) + getattr(found, name))


def _length_class(length_N: np.ndarray) -> np.ndarray:
    """Binary digits of each length, int64: 0 of 0, 1 of 1, 2 of 2 and 3, ...; the exponent of a float64 has them."""
    class_N = (length_N.astype(np.float64).view(np.int64) >> 52) - 1022
    return np.maximum(class_N, 0)


def _overlap(other_N: np.ndarray, kept_N: np.ndarray, length_N: np.ndarray) -> Overlap:
    both_N = other_N & kept_N
    return Overlap(
        sequences=int(np.count_nonzero(other_N)),
        tokens=int(length_N.sum(where=other_N, dtype=np.int64)),
        common_sequences=int(np.count_nonzero(both_N)),
        common_tokens=int(length_N.sum(where=both_N, dtype=np.int64)),
    )


def _joint(seen: _Seen, axes: Axes) -> np.ndarray:
    """Histogram of teacher and reference NLL; one that is not known has one counter."""
    num_teacher, num_reference = axes.nll_shape
    place_N = np.zeros(len(seen.kept_N), np.int64)
    scored_N: np.ndarray | np.bool_ = np.True_
    for nll_N, axis in ((seen.teacher_N, axes.teacher), (seen.reference_N, axes.reference)):
        if nll_N is not None and axis is not None:
            place_N = place_N * axis.num_counters + axis.counters(nll_N)
            scored_N = scored_N & (nll_N > -np.inf)
    place_N = 2 * place_N + seen.kept_N
    if not np.all(scored_N):
        place_N = place_N[scored_N]
    return np.bincount(place_N, minlength=2 * num_teacher * num_reference).reshape(num_teacher, num_reference, 2)
