"""What a training run leaves beside its checkpoints and logs, so that later ones can be compared with it.

<--save>/miniplm_training.json               which selections it was trained on, and how
<--tensorboard-dir>/miniplm_validation.json  which data its validation losses are of; one entry for each that it had
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.errors import CorruptArtifactError

TRAINING_RECORD = "miniplm_training.json"
VALIDATION_RECORD = "miniplm_validation.json"
FORMAT_VERSION = 1
_MAX_BYTES = 64 << 20


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
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is no file of ours")
        values = json.loads(path.read_text(encoding="utf-8"))
        found = values["format_version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptArtifactError(f"{path} is damaged ({error!r}): {remedy}") from None
    if found != FORMAT_VERSION:
        raise CorruptArtifactError(f"{path} has format version {found}, this release reads {FORMAT_VERSION}: {remedy}")
    if wrong := [name for name, kind in fields.items() if not isinstance(values.get(name), kind)]:
        raise CorruptArtifactError(f"{path} lacks a valid {wrong[0]!r}: {remedy}")
    return {name: values[name] for name in fields}
