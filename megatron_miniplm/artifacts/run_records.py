"""What a training run leaves beside its checkpoints and logs, so that later ones can be compared with it.

<--save>/miniplm_training.json               which selections it was trained on, and how
<--tensorboard-dir>/miniplm_validation.json  which data its validation losses are of; one entry for each that it had
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.errors import CorruptArtifactError

TRAINING_RECORD = "miniplm_training.json"
VALIDATION_RECORD = "miniplm_validation.json"
FORMAT_VERSION = 1


def write_record(path: Path, **values: Any) -> None:
    write_json(path, {"format_version": FORMAT_VERSION, **values})


def read_record(path: Path, *, fields: Mapping[str, type]) -> dict[str, Any] | None:
    """The fields of a record; None if there is none.

    Args:
        fields: that it must have, with their types.

    Raises:
        CorruptArtifactError: it is damaged, or of another format.
    """
    remedy = "delete it to go on without what it says"
    if not path.exists():
        return None
    values = read_json(path, what="record of a run", remedy=remedy)
    if (found := values.get("format_version")) != FORMAT_VERSION:
        raise CorruptArtifactError(f"{path} has format version {found}, this release reads {FORMAT_VERSION}: {remedy}")
    if wrong := [name for name, kind in fields.items() if not isinstance(values.get(name), kind)]:
        raise CorruptArtifactError(f"{path} lacks a valid {wrong[0]!r}: {remedy}")
    return {name: values[name] for name in fields}
