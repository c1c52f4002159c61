"""Scores and attributes of a piece of the corpus -> what takes part in the selection, with which value."""

from dataclasses import dataclass

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.hashing import perturbed
from megatron_miniplm.selection.attributes import Attributes
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import Piece, ScoredCorpus, Scores
from megatron_miniplm.selection.top import Ordered, Threshold, keeps


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
                f"sequence {first} has no number to be ranked by (NaN): change the expression of --from-scores, such "
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
