"""Fields of a config.json: values, defaults of the family, and what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import FAMILIES
from megatron_miniplm.mcore.huggingface.config_fields import LIMITS, ConfigFields, shown

PLACE = Path("model/config.json")


def fields(family: str = "mixtral", **config: Any) -> ConfigFields:
    return ConfigFields(config=config, family=FAMILIES[family], place=PLACE)


def test_a_field_comes_before_the_default_of_its_family() -> None:
    assert fields(num_local_experts=4).integer("num_local_experts") == 4
    assert fields().integer("num_local_experts") == FAMILIES["mixtral"].defaults["num_local_experts"] == 8
    assert fields("llama").integer("num_local_experts", 3) == 3
    assert fields().value("rope_theta") == 1_000_000.0
    assert fields(rope_theta=None).value("rope_theta") is None, "null is not absent"
    assert fields(rope_scaling=None).object("rope_scaling") == fields().object("rope_scaling") == {}
    assert fields(some=False).boolean("some", default=True) is False
    assert fields().boolean("some", default=True) is True


def test_limits_and_least_values_are_allowed_themselves() -> None:
    limit = LIMITS["num_hidden_layers"]
    assert fields(num_hidden_layers=limit).integer("num_hidden_layers") == limit
    assert fields(num_hidden_layers=0).integer("num_hidden_layers", least=0) == 0
    assert fields().number("rope_theta", 5, most=5.0) == 5.0


@pytest.mark.parametrize(
    ("config", "read"),
    [
        ({}, lambda found: found.value("name")),
        ({"num_hidden_layers": LIMITS["num_hidden_layers"] + 1}, lambda found: found.integer("num_hidden_layers")),
        ({"num_hidden_layers": True}, lambda found: found.integer("num_hidden_layers")),
        ({"num_hidden_layers": -1}, lambda found: found.integer("num_hidden_layers", least=0)),
        ({}, lambda found: found.number("name", math.nan, most=1.0)),
        ({}, lambda found: found.number("name", 1.5, most=1.0)),
        ({"name": 1}, lambda found: found.boolean("name")),
        ({"name": [1]}, lambda found: found.object("name")),
        ({}, lambda found: found.require("name", "gelu", ("silu",))),
    ],
)
def test_what_is_refused_names_the_file_and_the_field(
    config: dict[str, Any], read: Callable[[ConfigFields], object]
) -> None:
    (name,) = config or ("name",)
    with pytest.raises(InputError, match=f"^{PLACE}: {name} is "):
        read(fields(**config))


def test_long_values_are_cut() -> None:
    assert shown("a" * 78) == repr("a" * 78)
    assert shown("a" * 79) == "'" + "a" * 79 + "..."
