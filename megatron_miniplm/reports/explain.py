"""Why a sequence is kept or not: its scores, rank and threshold, looked up again in what the selection was made of.

One pass over the scores counts what is ranked before the sequences that are asked for, and compares what the thresholds
keep with the indices on disk: an explanation holds for the files that training reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from megatron_miniplm.artifacts.scores import NOT_SCORED
from megatron_miniplm.artifacts.selections import SELECTION, Selection, copies_of
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.reports.reopening import ReopenedSelection
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.selection.candidates import Attributes, CandidateReader, Candidates
from megatron_miniplm.selection.difference import UNITS
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER, Piece, ScoredCorpus, map_in_order
from megatron_miniplm.selection.top import Ordered, Threshold, sortable


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What is known of one sequence; None where it does not apply.

    Attributes:
        sequence: global id; `prefix`, `index`: the source prefix, and which of its sequences it is.
        num_tokens, num_scored_tokens: Megatron trains on the former, the models predicted the latter.
        teacher_nll_nats, reference_nll_nats: sums; None where a difference was predicted, or the model is not asked.
        predicted_difference_nats: sum, of `fit-proxy`.
        text_bytes: of UTF-8, where values are bits a byte.
        domain: where the selection asks for domains; empty where the sequence has none.
        value: what it is ranked by, in `unit`; None if that is no finite number.
        perturbed_value: the value over the temperature, with noise, where a sample was drawn.
        takes_part: whether no filter leaves it out; others have no rank.
        rank: from 1, among the `num_ranked` sequences that take part.
        percentile: share of the other sequences that take part and are ranked after it, in percent.
        domain_rank, num_ranked_in_domain: among those of its domain, where domains are ranked apart.
        why: what the decision rests on.
        weight: of a kept sequence.
        num_copies: in the view, where sequences are repeated by weight.
    """

    sequence: int
    prefix: str
    index: int
    num_tokens: int
    num_scored_tokens: int
    teacher_nll_nats: float | None
    reference_nll_nats: float | None
    predicted_difference_nats: float | None
    text_bytes: int | None
    domain: str | None
    value: float | None
    perturbed_value: float | None
    unit: str
    takes_part: bool
    rank: int | None
    num_ranked: int
    percentile: float | None
    domain_rank: int | None
    num_ranked_in_domain: int | None
    kept: bool
    why: str
    weight: float | None
    num_copies: int | None


def explain(selection: Selection, ids: Sequence[int]) -> list[Explanation]:
    """Explain some sequences of a selection by global id, in the given order; one pass, whatever their number.

    Raises:
        InputError: the scores are not where they were.
        FingerprintMismatchError: scores or corpora have changed since the selection was made.
        CorruptArtifactError: the indices on disk are not what scores and thresholds give, or a file is damaged.
    """
    reopened = ReopenedSelection.of(selection)
    corpus, rule, seen = reopened.corpus, reopened.rule, reopened.seen
    with TemporaryDirectory(prefix="miniplm-explain-") as scratch:
        attributes = reopened.attributes(Path(scratch))
        case = _Case(selection=selection, corpus=corpus, rule=rule, attributes=attributes, excludes_seen=bool(seen))
        asked = [case.reader.read(case.piece_of(sequence)) for sequence in ids]
        return [case.explain(*pair) for pair in zip(asked, case.standings(asked), strict=True)]


class Standing(NamedTuple):
    """How many sequences take part, and how many of them are ranked before one; of all, and of its group."""

    num_before: int
    num_ranked: int
    num_before_in_group: int
    num_ranked_in_group: int


def count_before(ordered: Ordered, key_N: np.ndarray, *, key: np.uint64, sequence: int, group: int) -> Standing:
    """Count among sequences of a stream, whose `sortable` values are `key_N`, what is ranked before a given one."""
    before_N = (key_N > key) | ((key_N == key) & (ordered.ids_N < sequence))
    in_group_N = np.ones(len(key_N), bool) if ordered.group_N is None else ordered.group_N == group
    masks = before_N, np.ones_like(before_N), before_N & in_group_N, in_group_N
    return Standing(*(int(np.count_nonzero(mask_N)) for mask_N in masks))


def decide(
    rule: Rule, threshold: Threshold, *, sequence: int, value: float, order: float, domain: str | None, lacks: str
) -> tuple[bool, str]:
    """Whether a sequence that takes part is kept, and why.

    Args:
        threshold: of its group.
        value, order: what it is ranked by, without and with noise.
        domain: names the threshold, where each domain has its own.
        lacks: why the value is -inf, if it is; else empty.
    """
    key = int(sortable(np.array([order]))[0])
    what = "its perturbed value" if rule.sampling == "gumbel" else "its value"
    limit = f"the threshold {threshold.value:.6g}" + ("" if domain is None else f" of domain {domain!r}")
    if threshold == Threshold.of_nothing():
        return False, f"the target leaves nothing for domain {domain!r}, which has no tokens"
    if key < threshold.key:
        sample = "not in the sample: " if rule.sampling == "gumbel" else ""
        if lacks:
            return False, f"{sample}{lacks}, which ranks it last, below {limit}"
        return False, f"{sample}{what} {order:.6g} is {threshold.value - order:.6g} below {limit}"
    if key == threshold.key and sequence > threshold.sequence:
        return False, f"{what} is equal to {limit}, but its id is above that of the last kept, {threshold.sequence}"
    if rule.drop_negative and not value >= 0:
        because = lacks or f"its difference {value:.6g} is negative"
        return False, f"{because}: --drop-negative drops what would be kept otherwise"
    if threshold == Threshold.of_everything():
        return True, "all that takes part is kept"
    if key == threshold.key:
        lower = f", with a lower id than the last kept, {threshold.sequence}"
        place = ": it is the last kept" if sequence == threshold.sequence else lower if rule.threshold is None else ""
        return True, f"{what} is equal to {limit}{place}"
    if math.isinf(threshold.value):
        return True, f"{what} {order:.6g} is above {limit}, that of sequences with nothing to rank by"
    return True, f"{what} {order:.6g} is {order - threshold.value:.6g} above {limit}"


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A selection, and all that it was made of."""

    selection: Selection
    corpus: ScoredCorpus
    rule: Rule
    attributes: Attributes
    excludes_seen: bool

    @cached_property
    def reader(self) -> CandidateReader:
        return CandidateReader(self.corpus, self.rule, self.attributes, excludes_seen=self.excludes_seen)

    @cached_property
    def thresholds(self) -> list[Threshold]:
        """By the place of their domains in `attributes.domains`, where domains are ranked apart."""
        domains = list(self.attributes.domains) if self.rule.per_domain else [None]
        path = self.selection.directory / SELECTION
        try:
            entries = self.selection.summary["thresholds"]
            if (found := [entry["domain"] for entry in entries]) == domains:
                return [Threshold(key=int(entry["key"], 16), sequence=entry["sequence"]) for entry in entries]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptArtifactError(
                f"{path} does not say how it was made ({error!r}): make the selection again"
            ) from None
        raise CorruptArtifactError(
            f"{path} has thresholds of {found}, the sidecars have {domains}: one of "
            "them has changed; make the selection again"
        )

    @cached_property
    def indices(self) -> list[np.ndarray]:
        """What is kept of every prefix, as training reads it."""
        return [prefix.indices() for prefix in self.selection.prefixes]

    def piece_of(self, sequence: int) -> Piece:
        """The piece of one sequence."""
        starts = [prefix.start for prefix in self.selection.prefixes]
        position = int(np.searchsorted(starts, sequence, side="right")) - 1
        return Piece(prefix=position, first=sequence - starts[position], start=sequence, size=1)

    def standings(self, asked: Sequence[Candidates]) -> list[Standing]:
        """Where each of the candidates, one sequence each, stands; compares all of the indices on the way."""
        keys = [sortable(one.order_N)[0] for one in asked]

        def look(piece: Piece) -> list[Standing]:
            candidates = self.reader.read(piece)
            self._refuse_other_indices(candidates)
            ordered = self.reader.ordered(candidates)
            key_N = sortable(ordered.value_N)
            return [
                count_before(ordered, key_N, key=key, sequence=one.piece.start, group=_group(one))
                for one, key in zip(asked, keys, strict=True)
            ]

        totals = np.zeros((len(asked), len(Standing._fields)), np.int64)
        pieces = self.corpus.pieces()
        with Progress(self.corpus.num_sequences, " sequences", title="ranking") as progress:
            for piece, found in zip(pieces, map_in_order(look, pieces), strict=True):
                totals += np.array(found)
                progress.advance(piece.size)
        return [Standing(*row) for row in totals.tolist()]

    def explain(self, one: Candidates, standing: Standing) -> Explanation:
        """Put together what is known of one sequence."""
        sequence, source = one.piece.start, self.selection.prefixes[one.piece.prefix]
        in_bytes = self.rule.measure.reduction == "bits-per-byte"
        text_bytes = int(self.attributes.text_bytes(one.piece)[0]) if in_bytes else None
        domain = None if one.domain_N is None else self.attributes.domains[one.domain_N[0]]
        takes_part = bool(one.is_eligible_N[0])
        kept, why = self._decision(one, domain, text_bytes)
        weight, num_copies = self._weight(one.piece) if kept else (None, None)
        return Explanation(
            sequence=sequence,
            prefix=source.name,
            index=one.piece.first,
            num_tokens=int(self.corpus.lengths(one.piece)[0]),
            num_scored_tokens=int(one.scores.num_scored_N[0]),
            **self._nlls(one),
            text_bytes=text_bytes,
            domain=domain,
            value=_finite(one.value_N),
            perturbed_value=_finite(one.order_N) if self.rule.sampling == "gumbel" else None,
            unit=UNITS[self.rule.measure.reduction],
            takes_part=takes_part,
            rank=standing.num_before + 1 if takes_part else None,
            num_ranked=standing.num_ranked,
            percentile=100 * (1 - standing.num_before / max(1, standing.num_ranked - 1)) if takes_part else None,
            domain_rank=standing.num_before_in_group + 1 if takes_part and self.rule.per_domain else None,
            num_ranked_in_domain=standing.num_ranked_in_group if self.rule.per_domain else None,
            kept=kept,
            why=why,
            weight=weight,
            num_copies=num_copies,
        )

    def _decision(self, one: Candidates, domain: str | None, text_bytes: int | None) -> tuple[bool, str]:
        if left_out := self._left_out(one, domain):
            kept, why = False, f"it does not take part: {', and '.join(left_out)}"
        else:
            lacks = ""
            if one.value_N[0] == -math.inf:
                lacks = "it has no bytes of text" if text_bytes == 0 else "its value is -inf"
                lacks = "nothing of it was scored" if one.scores.num_scored_N[0] == 0 else lacks
            kept, why = decide(
                self.rule,
                self.thresholds[_group(one) if self.rule.per_domain else 0],
                sequence=one.piece.start,
                value=float(one.value_N[0]),
                order=float(one.order_N[0]),
                domain=domain if self.rule.per_domain else None,
                lacks=lacks,
            )
        assert kept == self.reader.kept(one, self.thresholds)[0]
        return kept, why

    def _left_out(self, one: Candidates, domain: str | None) -> list[str]:
        """The filters that leave a sequence out."""
        found = []
        if one.length_N is not None and one.length_N[0] < self.rule.min_tokens:
            found.append(f"it has {one.length_N[0]} tokens, below --min-tokens {self.rule.min_tokens}")
        if domain in self.rule.drop_domains:
            found.append(f"its domain {domain!r} is dropped (--drop-domain)")
        elif self.rule.keep_domains and domain not in self.rule.keep_domains:
            kept = ", ".join(self.rule.keep_domains)
            found.append(f"its domain {domain!r} is dropped (--keep-domain {kept})")
        if self.excludes_seen and self.attributes.is_seen(one.piece)[0]:
            found.append("the reference model was trained on it (--seen-by-reference exclude)")
        return found

    def _nlls(self, one: Candidates) -> dict[str, float | None]:
        """The sums of NLL, or what was predicted instead."""
        found_N = one.scores.teacher_nll_N, one.scores.reference_nll_N
        teacher, reference = (None if nll_N is None else float(nll_N[0]) for nll_N in found_N)
        stores = self.corpus.stores
        if PREDICTIONS in stores:
            ids = range(one.piece.start, one.piece.start + 1)
            models = [stores[role].read(ids) for role in (TEACHER, REFERENCE) if role in stores]
            if not models or any(scores["num_tokens"][0] == NOT_SCORED for scores in models):
                return {"teacher_nll_nats": None, "reference_nll_nats": None, "predicted_difference_nats": reference}
        return {"teacher_nll_nats": teacher, "reference_nll_nats": reference, "predicted_difference_nats": None}

    def _weight(self, piece: Piece) -> tuple[float, int | None]:
        """Weight and number of copies of a kept sequence."""
        source = self.selection.prefixes[piece.prefix]
        place = int(np.searchsorted(self.indices[piece.prefix], piece.first))
        weight_K = source.weights()[place : place + 1]
        copies_K = copies_of(weight_K, piece.ids_N, seed=self.rule.seed)
        return float(weight_K[0]), int(copies_K[0]) if self.rule.repeat else None

    def _refuse_other_indices(self, candidates: Candidates) -> None:
        piece = candidates.piece
        source, indices_K = self.selection.prefixes[piece.prefix], self.indices[piece.prefix]
        start, stop = np.searchsorted(indices_K, [piece.first, piece.first + piece.size])
        # What lies outside of the prefix belongs to its first or last piece.
        start = 0 if piece.first == 0 else start
        stop = len(indices_K) if piece.first + piece.size == source.num_source_sequences else stop
        expected_K = np.flatnonzero(self.reader.kept(candidates, self.thresholds)) + piece.first
        found_K = indices_K[start:stop]
        if np.array_equal(found_K, expected_K):
            return
        which = "sequences out of order"
        if len(differing := np.setxor1d(found_K, expected_K)):
            which = f"{'no ' if differing[0] in expected_K else ''}sequence {differing[0]}"
        raise CorruptArtifactError(
            f"{source.indices_path} has {which}, which is not what the scores and thresholds of the selection give: "
            "the selection on disk does not match its scores; make it again"
        )


def _group(one: Candidates) -> int:
    return 0 if one.domain_N is None else int(one.domain_N[0])


def _finite(value_N: np.ndarray) -> float | None:
    return float(value_N[0]) if math.isfinite(value_N[0]) else None
