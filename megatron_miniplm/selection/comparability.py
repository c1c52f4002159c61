"""Whether a difference of two stores of scores can mean anything, before it is computed and after."""

import math
from typing import Any

from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.selection.scored_corpus import REFERENCE, TEACHER, ScoredCorpus

#: Settings of a store that shape the context in which a token is scored, and the flags that set them.
_CONTEXT_SETTINGS = {"context_tokens": "--seq-length", "overlap_tokens": "--miniplm-window-overlap"}
#: Share of negative differences from which on teacher and reference were probably exchanged. A teacher that is better
#: than its reference has few; two models that are equally good have half.
SUSPICIOUS_NEGATIVE_FRACTION = 0.9


def refuse_incomparable(corpus: ScoredCorpus) -> None:
    """Check that teacher and reference are two models that were asked the same.

    Raises:
        InputError: both stores are of one model.
        FingerprintMismatchError: they were scored in different contexts.
    """
    if not {TEACHER, REFERENCE} <= corpus.stores.keys():
        return
    teacher, reference = corpus.stores[TEACHER], corpus.stores[REFERENCE]
    if teacher.identity["model"] == reference.identity["model"]:
        raise InputError(
            f"{teacher.directory} and {reference.directory} are scores of one and the same model, so that every "
            "difference is 0: give the scores of the teacher and those of the reference"
        )
    for name, flag in _CONTEXT_SETTINGS.items():
        one, other = (store.identity["settings"].get(name) for store in (teacher, reference))
        if one != other:
            raise FingerprintMismatchError(
                f"{teacher.directory} was scored with {flag} {one}, {reference.directory} with {other}: score both "
                "with the same, or differences are those of the contexts"
            )


def warning_of(summary: dict[str, Any], *, is_difference: bool) -> str | None:
    """What is suspicious about a finished selection; None if nothing is.

    Args:
        summary: what `selection.json` holds.
        is_difference: whether sequences are ranked by the difference of two models.
    """
    if _is_of_one_value(summary):
        return (
            "warning: every sequence has the same value, or none has one, so that the first of the corpus are kept: "
            "check that the two stores are of different models, and --from-scores"
        )
    fraction = summary["negative_fraction"]
    if not is_difference or fraction < SUSPICIOUS_NEGATIVE_FRACTION:
        return None
    return (
        f"warning: the teacher is worse than the reference on {fraction:.1%} of the sequences: check that "
        "--teacher-scores and --reference-scores are not swapped, and that the teacher's checkpoint, tokenizer and "
        "flags are right"
    )


def _is_of_one_value(summary: dict[str, Any]) -> bool:
    """Whether nothing was ranked: the lowest kept value is the mean of the kept and of all."""
    lowest = summary["lowest_kept_value"]
    if lowest is None:
        return bool(summary["num_kept"])
    means = (summary["mean_value"], summary["mean_kept_value"])
    is_mean = all(math.isclose(lowest, mean, rel_tol=1e-9, abs_tol=1e-12) for mean in means)
    return is_mean and summary["num_eligible"] > 1
