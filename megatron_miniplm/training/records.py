"""What a run was trained and validated on: recorded at its first step, compared when it is resumed."""

import argparse
from pathlib import Path
from typing import Any

from megatron.training.utils import get_blend_and_blend_per_split

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.manifest import load_manifest, prefix_manifest_path
from megatron_miniplm.artifacts.run_records import TRAINING_RECORD, VALIDATION_RECORD, read_record, write_record
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore.program import say_once
from megatron_miniplm.training.refinement import OBJECT_STORAGE, Refinement, key_of

_TRACKER = "latest_checkpointed_iteration.txt"
_FIELDS = {"selections": list, "settings": dict, "training_data": list}


def record_run(args: argparse.Namespace, refinement: Refinement | None) -> None:
    """Write both records; called on one rank, before the first step changes anything.

    Training does not depend on them: where they cannot be written, a line says so.

    Raises:
        CorruptArtifactError: there is a damaged record.
    """
    try:
        _record(args, refinement)
    except OSError as error:
        say_once(f"warning: what this run is trained and validated on is not recorded: {error}")


def _record(args: argparse.Namespace, refinement: Refinement | None) -> None:
    blend, per_split = get_blend_and_blend_per_split(args)
    if args.save:
        write_record(Path(args.save) / TRAINING_RECORD, **_trained_on(args, refinement, blend, per_split))
    if getattr(args, "tensorboard_dir", None) and args.eval_iters:
        path = Path(args.tensorboard_dir) / VALIDATION_RECORD
        before = read_record(path, fields={"validation": list}) or {"validation": []}
        found = _validated_on(args, blend, per_split)
        if found not in before["validation"]:
            write_record(path, validation=[*before["validation"], found])


def check_resumed_run(args: argparse.Namespace, refinement: Refinement | None) -> None:
    """Compare a run that continues from a checkpoint with what that was trained on.

    Raises:
        InputError: it was trained on other selections, or used them in another way.
    """
    load = getattr(args, "load", None)
    if not load or getattr(args, "finetune", False) or not (Path(load) / _TRACKER).exists():
        return
    path = Path(load) / TRAINING_RECORD
    before = read_record(path, fields=_FIELDS)
    if before is None:
        return
    now = _trained_on(args, refinement, *get_blend_and_blend_per_split(args))
    if _identity(before) != _identity(now):
        raise InputError(
            f"{load} was trained {_described(before)}, but this run would go on {_described(now)}: give the flags of "
            f"that run, start a new one with --finetune, or delete {path} to go on with other data"
        )
    if before["training_data"] != now["training_data"]:
        say_once(
            f"warning: {load} was trained on {_names(before)}, this run goes on with {_names(now)}: with other data "
            "the order of samples is another"
        )


def _trained_on(args: argparse.Namespace, refinement: Refinement | None, blend: Any, per_split: Any) -> dict[str, Any]:
    selections: dict[str, Fingerprint] = {}
    for refined in refinement.prefixes.values() if refinement is not None else ():
        selections[str(refined.pool.selection.directory)] = refined.pool.selection.manifest.fingerprint
    names = ("weighting", "ratio_schedule", "temperature_schedule")
    paths, _ = (per_split[0] if per_split else blend) or ([], None)
    return {
        "selections": [{"directory": name, "fingerprint": found} for name, found in sorted(selections.items())],
        "settings": {name: getattr(args, f"miniplm_{name}", None) for name in names} if selections else {},
        "training_data": sorted(Path(path).name for path in paths or ()),
    }


def _identity(record: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return sorted(str(entry.get("fingerprint")) for entry in record["selections"]), record["settings"]


def _described(record: dict[str, Any]) -> str:
    if not record["selections"]:
        return "without a selection"
    selections = " ".join(
        f"{entry.get('directory')} [{str(entry.get('fingerprint'))[:SHORT_HEX]}]" for entry in record["selections"]
    )
    settings = "".join(
        f" --miniplm-{name.replace('_', '-')} {value}"
        for name, value in record["settings"].items()
        if value not in (None, "none")
    )
    return f"with --miniplm-selection {selections}{settings}"


def _names(record: dict[str, Any]) -> str:
    names = [str(name) for name in record["training_data"]]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "no data"


def _validated_on(args: argparse.Namespace, blend: Any, per_split: Any) -> list[dict[str, Any]]:
    """The validation data by content: fingerprint and share of each prefix, and which part of it is used."""
    paths, weights = (per_split[1] if per_split else blend) or ([], None)
    paths, weights = paths or [], weights or [1.0] * len(paths or [])
    total = sum(weights) or 1.0
    return [
        {
            "name": Path(path).name,
            "fingerprint": _fingerprint(path),
            "share": round(weight / total, 6),
            "split": None if per_split else _normalized(args.split),
        }
        for path, weight in zip(paths, weights, strict=True)
    ]


def _normalized(split: str | None) -> list[float]:
    parts = [float(part) for part in str(split or "").replace("/", ",").split(",") if part]
    total = sum(parts) or 1.0
    return [round(part / total, 6) for part in parts]


def _fingerprint(path: str) -> Fingerprint:
    """Of the manifest where there is one: reading the whole index would make training wait.

    The place stands for what cannot be read here, in object storage or stricter than Megatron reads it.
    """
    if path.startswith(OBJECT_STORAGE):
        return path
    try:
        if prefix_manifest_path(Path(path)).exists():
            return load_manifest(Path(path)).fingerprint
        return IndexedCorpus.open(path).fingerprint()
    except MiniPLMError:
        return key_of(path)
