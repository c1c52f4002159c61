"""Settings as JSON, and the way back."""

import json
from typing import Any

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.rule import Rule


@pytest.mark.parametrize(
    "rule",
    [
        Rule(ratio=0.5),
        Rule(target_tokens=7, keep_domains=("a", "b"), per_domain=True, min_tokens=3),
        Rule(threshold=0.5, drop_domains=("c",), weights="rank", weight_cap=3.0, repeat=True, seed=8),
        Rule(ratio=0.1, ratio_of="tokens", sampling="gumbel", temperature=0.1, seed=3),
        Rule(ratio=1, drop_negative=True, weights="softmax", weight_temperature=2.0),
        Rule(ratio=1, measure=Measure(expression="-teacher", reduction="sum")),
    ],
    ids=str,
)
def test_settings_lead_back_to_the_rule(rule: Rule) -> None:
    settings = json.loads(json.dumps(rule.settings()))
    assert Rule.from_settings(settings) == rule
    assert Rule.from_settings({**settings, "num_kept": 3, "thresholds": []}) == rule


def test_flags_that_do_nothing_are_not_settings() -> None:
    found = Rule.from_settings(Rule(ratio=0.5, seed=7, temperature=3.0, weight_cap=2.0).settings())
    assert found == Rule(ratio=0.5)


def test_settings_that_are_incomplete_or_contradict_one_another() -> None:
    settings = Rule(ratio=0.5).settings()
    with pytest.raises(InputError, match="give one of --ratio, --target-tokens and --threshold"):
        Rule.from_settings({**settings, "threshold": 0.5})
    del settings["from_scores"]
    with pytest.raises(KeyError, match="from_scores"):
        Rule.from_settings(settings)


@pytest.mark.parametrize(
    ("name", "value"), [("min_tokens", {}), ("per_domain", 1.5), ("ratio", "half"), ("keep_domains", [1])]
)
def test_a_setting_of_another_type_is_no_rule(name: str, value: object) -> None:
    settings = json.loads(json.dumps(Rule(ratio=0.5, keep_domains=("a",), min_tokens=3).settings()))
    with pytest.raises(TypeError, match=name):
        Rule.from_settings({**settings, name: value})


@pytest.mark.parametrize(
    ("numbers", "flag"),
    [
        ({"ratio": 0.5, "min_tokens": -1}, "--min-tokens -1"),
        ({"ratio": 0.5, "min_tokens": 1 << 63}, "--min-tokens 9223372036854775808"),
        ({"target_tokens": 0}, "--target-tokens 0"),
        ({"target_tokens": 1 << 63}, "--target-tokens 9223372036854775808"),
    ],
)
def test_numbers_that_no_selection_can_record_are_refused(numbers: dict[str, Any], flag: str) -> None:
    """`selection.json` is read strictly: what is written here must be read there."""
    with pytest.raises(InputError, match=rf"^{flag} must lie in \["):
        Rule(**numbers)
