"""The fields of `selection.json` and their types, checked once where the file is read.

Readers print, compare and divide these numbers, and follow these paths. What a rule means is the business of
`selection/rule.py`; here its fields have the right types.
"""

from collections.abc import Iterable
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

_COUNT = msgspec.Meta(ge=0, le=(1 << 63) - 1)
Count = Annotated[int, _COUNT]
#: A file of the selection itself; never a path that leads elsewhere.
FileName = Annotated[str, msgspec.Meta(pattern=r"\A[^/\x00]+\Z", max_length=255)]
_Path = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00]*\Z")]


class Prefix(TypedDict):
    """One entry of `prefixes`."""

    name: str
    path: _Path
    fingerprint: str
    num_source_sequences: Count
    num_sequences: Count
    num_tokens: Count
    weighted_tokens: Annotated[float, msgspec.Meta(ge=0)]
    indices: FileName
    weights: FileName
    values: FileName
    checksums: FileName
    view: FileName | None


class Threshold(TypedDict):
    """One entry of `thresholds`: the last sequence that is kept."""

    domain: str | None
    value: float | None
    key: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]
    sequence: Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]


class Summary(TypedDict):
    """What `selection.json` holds; a setting that did nothing is left out."""

    format_version: int
    # The rule.
    ratio: NotRequired[float]
    ratio_of: NotRequired[str]
    target_tokens: NotRequired[Count]
    threshold: NotRequired[float]
    from_scores: str
    score_reduction: str
    sampling: str
    temperature: NotRequired[Annotated[float, msgspec.Meta(gt=0)]]
    seed: NotRequired[Count]
    per_domain: bool
    keep_domains: list[str]
    drop_domains: list[str]
    min_tokens: Count
    drop_negative: bool
    weights: str
    weight_temperature: NotRequired[Annotated[float, msgspec.Meta(gt=0)]]
    weight_cap: NotRequired[Annotated[float, msgspec.Meta(ge=1)]]
    repeat: bool
    # How it was applied.
    index_only: bool
    seen_by_reference: str
    # What came out.
    num_sequences: Count
    num_eligible: Count
    num_kept: Count
    num_kept_tokens: Count
    num_scored_tokens: Count
    num_kept_scored_tokens: Count
    num_seen_by_reference: Count
    mean_value: float
    mean_kept_value: float
    lowest_kept_value: float | None
    negative_fraction: Annotated[float, msgspec.Meta(ge=0, le=1)]
    thresholds: Annotated[list[Threshold], msgspec.Meta(min_length=1)]
    prefixes: Annotated[list[Prefix], msgspec.Meta(min_length=1)]


def checked_summary(values: dict[str, Any]) -> dict[str, Any]:
    """Parsed JSON as a summary, its numbers of the types above.

    Raises:
        ValueError: a field is missing, has another type or is out of range, or two of them contradict each other.
    """
    summary: dict[str, Any] = dict(msgspec.convert(values, Summary))
    prefixes = summary["prefixes"]
    for entry in prefixes:
        if {entry[name] for name in ("indices", "weights", "values", "checksums", "view")} & {".", ".."}:
            raise ValueError("'.' and '..' are not file names")
        _require_ascending("num_sequences of a prefix", entry["num_sequences"], entry["num_source_sequences"])
    _require_ascending("num_kept", summary["num_kept"], summary["num_eligible"], summary["num_sequences"])
    for total, part in (
        ("num_sequences", "num_source_sequences"),
        ("num_kept", "num_sequences"),
        ("num_kept_tokens", "num_tokens"),
    ):
        _require_sum(total, summary[total], (entry[part] for entry in prefixes))
    if summary["sampling"] == "gumbel" and "temperature" not in summary:
        raise ValueError("a gumbel sample without its temperature")
    return summary


def _require_ascending(name: str, *counts: int) -> None:
    if list(counts) != sorted(counts):
        raise ValueError(f"{name} is {counts[0]:,}, expected at most {min(counts[1:]):,}")


def _require_sum(name: str, total: int, parts: Iterable[int]) -> None:
    if (found := sum(parts)) != total:
        raise ValueError(f"{name} is {total:,}, but the prefixes add up to {found:,}")
