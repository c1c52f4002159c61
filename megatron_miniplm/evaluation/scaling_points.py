"""Points of scaling curves, from a JSON file or from TensorBoard logs of Megatron."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.curves import read_curve


@dataclass(frozen=True, kw_only=True)
class ScalingPoints:
    """Losses of one method by compute.

    Attributes:
        compute_P: FLOPs, float64.
        loss_P: nats a token, float64.
        runs_P: the training run of each point; None where the points do not name it.
    """

    compute_P: np.ndarray
    loss_P: np.ndarray
    runs_P: list[str] | None = None


def read_points(path: Path) -> dict[str, ScalingPoints]:
    """Read `{"method": [{"compute_flops": 1e18, "loss": 4.2, "run": "seed 1"}, ...], ...}`; "run" may be left out.

    Raises:
        InputError: the file is not such JSON, or a method names the runs of some points only.
    """
    form = 'expected {"method": [{"compute_flops": 1e18, "loss": 4.2, "run": "optional"}, ...], ...}'
    try:
        with open_regular(path) as stream:
            methods = json.loads(stream.read(), parse_int=float)
    except (ValueError, RecursionError) as error:  # of JSON and of its encoding
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(methods, dict) or not methods:
        raise InputError(f"{path} holds no methods: {form}")
    points = {}
    for name, entries in methods.items():
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: {name} holds no points: {form}")
        for at, entry in enumerate(entries):
            if not _is_point(entry):
                raise InputError(f"{path}: point {at} of {name} is {json.dumps(entry)[:80]}: {form}")
        runs = [str(entry["run"]) for entry in entries if "run" in entry]
        if 0 < len(runs) < len(entries):
            raise InputError(f'{path}: {len(entries) - len(runs)} points of {name} have no "run": name all or none')
        points[name] = ScalingPoints(
            compute_P=np.array([entry["compute_flops"] for entry in entries], np.float64),
            loss_P=np.array([entry["loss"] for entry in entries], np.float64),
            runs_P=runs or None,
        )
    return points


def _is_point(entry: Any) -> bool:
    return isinstance(entry, dict) and all(map(_is_finite, map(entry.get, ("compute_flops", "loss"))))


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def points_of_logs(
    log_dirs: Sequence[Path],
    *,
    flops_per_token: float,
    tokens_per_sample: int,
    skip_tokens: int = 0,
    validation_set: str | None = None,
) -> ScalingPoints:
    """Every evaluation of every run; a directory is a run.

    Args:
        flops_per_token: of training, forward and backward; about six times the parameters.
        skip_tokens: evaluations before so many tokens are left out.

    Raises:
        InputError: the logs cannot be read as curves, or nothing is left of them.
    """
    curve = read_curve(log_dirs, tokens_per_sample=tokens_per_sample, validation_set=validation_set)
    kept_E = (curve.tokens_E > 0) & (curve.tokens_E >= skip_tokens)
    if not kept_E.any():
        raise InputError(
            f"--skip-tokens {skip_tokens:,} leaves nothing of {log_dirs[0]}: it ends at {curve.tokens_E[-1]:,} tokens"
        )
    num_kept = int(kept_E.sum())
    return ScalingPoints(
        compute_P=np.tile(curve.tokens_E[kept_E] * flops_per_token, len(log_dirs)),
        loss_P=curve.loss_RE[:, kept_E].ravel(),
        runs_P=[str(path) for path in log_dirs for _ in range(num_kept)],
    )


def joined(parts: Sequence[ScalingPoints]) -> ScalingPoints:
    """Points of several model sizes as those of one method; all parts name their runs."""
    return ScalingPoints(
        compute_P=np.concatenate([part.compute_P for part in parts]),
        loss_P=np.concatenate([part.loss_P for part in parts]),
        runs_P=[run for part in parts for run in part.runs_P or ()],
    )
