"""Records of a run: what was written comes back, and damage is named."""

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_miniplm.artifacts.run_records import FORMAT_VERSION, read_record, write_record
from megatron_miniplm.errors import CorruptArtifactError

FIELDS = {"weighting": str, "runs": list}


def test_the_fields_that_are_asked_for_come_back(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    assert read_record(path, fields=FIELDS) is None
    write_record(path, weighting="loss", runs=[1, 2], epochs=3)
    assert read_record(path, fields=FIELDS) == {"weighting": "loss", "runs": [1, 2]}
    assert read_record(path, fields={"epochs": int}) == {"epochs": 3}


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"format_version": FORMAT_VERSION + 1, "weighting": "loss", "runs": []}, "has format version 2"),
        ({"weighting": "loss", "runs": []}, "has format version None"),
        ({"format_version": FORMAT_VERSION, "weighting": "loss"}, "'runs'"),
        ({"format_version": FORMAT_VERSION, "weighting": 3, "runs": []}, "'weighting'"),
        ([], "is not a valid record of a run"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(tmp_path: Path, values: Any, fault: str) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps(values))
    with pytest.raises(CorruptArtifactError, match=f"^{path} .*{fault}.*delete it"):
        read_record(path, fields=FIELDS)
