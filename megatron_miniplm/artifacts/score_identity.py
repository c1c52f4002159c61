"""`identity.json` of a directory of scores: what is scored with what. Runs with another one do not mix their blocks."""

import json
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError

FORMAT_VERSION = 2
IDENTITY = "identity.json"


def identity_bytes(identity: dict[str, Any]) -> bytes:
    """The file of an identity."""
    values = {"format_version": FORMAT_VERSION, **identity}
    return (json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def read_identity(directory: Path) -> dict[str, Any]:
    """The identity of a store.

    Raises:
        InputError: not a directory of scores.
        CorruptArtifactError: its identity cannot be read, or is of another format.
    """
    path = directory / IDENTITY
    try:
        identity: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = identity.pop("format_version", 1)
        BlockPlan.of(identity)
        identity["model"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{directory} is not a directory of scores: it has no {IDENTITY}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(f"{path} is damaged ({error!r}): score into a new directory") from None
    if found != FORMAT_VERSION:
        raise CorruptArtifactError(
            f"{directory} holds scores in format {found}, this release reads {FORMAT_VERSION}: use the release that "
            "wrote them, or score into a new directory"
        )
    return identity


def require_equal(directory: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse to go on with a directory of another identity.

    Raises:
        FingerprintMismatchError: names the first value that differs.
    """
    for part in ("corpus", "model", "settings"):
        if there[part] != here[part]:
            raise FingerprintMismatchError(
                f"{directory} holds scores of another {part} ({_difference(there[part], here[part])}): "
                "give another --miniplm-scores directory, or delete this one"
            )


def _difference(there: Any, here: Any) -> str:
    """The first value that differs, in a few words."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(key for key in {**there, **here} if there.get(key) != here.get(key))
        return f"{key}: {_difference(there.get(key), here.get(key))}"
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        return next(_difference(a, b) for a, b in zip(there, here, strict=True) if a != b)
    if isinstance(there, list) and isinstance(here, list):
        return f"{len(there)} prefixes there, {len(here)} here"
    return f"{_short(there)} there, {_short(here)} here"


def _short(value: Any) -> str:
    return value[:SHORT_HEX] if isinstance(value, str) and len(value) == 32 else str(value)
