#!/usr/bin/env python3
"""Tables of the study: what each way of training ended at beside the conventional one, and points for scaling curves.

Losses are nats a token. A run's loss is the mean over the held-out sets, each counting the same. Differences are
paired: both students of a seed start from the same weights, so a seed's own luck cancels. Intervals are Student's t
over seeds.
"""

import argparse
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
from scipy import stats

from megatron_miniplm.artifacts import write_json, write_text
from megatron_miniplm.evaluation.curves import LossCurve, read_curve
from megatron_miniplm.mcore.checkpoints import checkpoint_directory, recorded_args
from megatron_miniplm.mcore.flops import ModelShape

METHODS = {
    "conventional": "the pool as it is",
    "refined": "the half with the greatest difference of reference and teacher",
    "teacher-perplexity": "the half with the lowest perplexity of the teacher",
    "reference-perplexity": "the half with the lowest perplexity of the reference",
    "kd": "the pool, vanilla KD from the teacher at every step",
    "kd-matched": "the same with so few steps that teacher and student together cost what the student alone costs",
    "refined-kd": "the refined half, with vanilla KD",
}
SIZES = ("small", "medium", "large")
BASELINE = "conventional"
CONFIDENCE = 0.9


@dataclass(frozen=True, kw_only=True)
class Kind:
    """All seeds of one student on one kind of data.

    Attributes:
        curves: by held-out set; axes R seeds and E evaluations.
        flops_per_token: that one training token takes, the teacher's share included.
    """

    curves: dict[str, LossCurve]
    flops_per_token: float

    @cached_property
    def tokens_E(self) -> np.ndarray:
        return next(iter(self.curves.values())).tokens_E

    @cached_property
    def loss_RE(self) -> np.ndarray:
        return np.mean([curve.loss_RE for curve in self.curves.values()], axis=0)

    @property
    def training_flops(self) -> float:
        return float(self.tokens_E[-1] * self.flops_per_token)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="OUTPUT_DIR of run.sh")
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--kinds", nargs="+", required=True, help="names of the held-out sets")
    parser.add_argument("--seq-length", type=int, required=True)
    parser.add_argument(
        "--decay-tokens", type=int, required=True, help="of the schedule's end, where no point is taken"
    )
    parser.add_argument("--output", type=Path, required=True, help="directory that gets the tables and points")
    arguments = parser.parse_args()
    methods = {(size, name): load_kind(arguments, size, name) for size, name in ran(arguments)}
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_text(arguments.output / "tables.md", "\n".join(page(arguments, methods)) + "\n")
    write_json(
        arguments.output / "losses.json",
        {f"{size}-{name}": as_json(kind, arguments.seeds) for (size, name), kind in methods.items()},
    )
    for size in SIZES:
        points = {
            name: points_of(methods[size, name], arguments.seeds, arguments.decay_tokens)
            for name in (BASELINE, "refined")
        }
        (arguments.output / f"points-{size}.json").write_text(json.dumps(points, indent=1) + "\n")
    print((arguments.output / "tables.md").read_text())


def ran(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Sizes and methods of the study; every method at the medium size, two of them at all."""
    return [(size, name) for size in SIZES for name in METHODS if size == "medium" or name in (BASELINE, "refined")]


def load_kind(arguments: argparse.Namespace, size: str, method: str) -> Kind:
    directories = [arguments.run / f"{size}-{method}-{seed}" for seed in arguments.seeds]
    flops = shape_of(directories[0]).training_flops_per_token(arguments.seq_length)
    if "kd" in method.split("-"):
        flops += shape_of(arguments.run / "teacher").forward_flops_per_token(arguments.seq_length)
    curves = {
        held_out: read_curve(
            [directory / "tensorboard" for directory in directories],
            tokens_per_sample=arguments.seq_length,
            validation_set=held_out,
        )
        for held_out in arguments.kinds
    }
    return Kind(curves=curves, flops_per_token=flops)


def shape_of(run: Path) -> ModelShape:
    args = recorded_args(checkpoint_directory(str(run / "checkpoint")))
    assert args is not None, f"{run}/checkpoint holds no args"
    return ModelShape.from_megatron_args(args)


def page(arguments: argparse.Namespace, kinds: dict[tuple[str, str], Kind]) -> list[str]:
    teacher, reference = (shape_of(arguments.run / name) for name in ("teacher", "reference"))
    lines = [
        f"Seeds {', '.join(map(str, arguments.seeds))}; Python {platform.python_version()}, "
        f"torch {version('torch')}, megatron-core {version('megatron-core')}. Teacher {million(teacher)}, reference "
        f"{million(reference)} parameters. Losses are nats a token on held-out text, means over seeds; "
        f"brackets are {CONFIDENCE:.0%} intervals (Student's t, {len(arguments.seeds)} seeds) of the paired difference "
        f"to {BASELINE}.",
        "",
        "## Seven ways to train the medium student",
        "",
        f"| method | {' | '.join(arguments.kinds)} | mean | difference | training FLOPs |",
        "|---|" + "---:|" * (len(arguments.kinds) + 3),
    ]
    baseline = kinds["medium", BASELINE]
    for name in METHODS:
        kind = kinds["medium", name]
        sets = " | ".join(f"{curve.mean_E[-1]:.4f}" for curve in kind.curves.values())
        lines.append(
            f"| {name} | {sets} | {kind.loss_RE[:, -1].mean():.4f} | {difference(kind, baseline)} "
            f"| {kind.training_flops:.3g} ({kind.training_flops / baseline.training_flops:.2f} x) |"
        )
    lines += ["", *(f"- {name}: {meaning}" for name, meaning in METHODS.items()), ""]
    lines += sizes_table(arguments, kinds)
    return lines


def sizes_table(arguments: argparse.Namespace, kinds: dict[tuple[str, str], Kind]) -> list[str]:
    lines = [
        "## Three sizes of students",
        "",
        f"| student | parameters | {BASELINE} | refined | difference | tokens to the final loss of {BASELINE} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for size in SIZES:
        baseline, refined = kinds[size, BASELINE], kinds[size, "refined"]
        mean = LossCurve(tokens_E=refined.tokens_E, loss_RE=refined.loss_RE)
        goal = baseline.loss_RE[:, -1].mean()
        reached = mean.tokens_to_reach(float(goal))
        share = "not reached" if reached is None else f"{reached:,.0f} ({reached / baseline.tokens_E[-1]:.0%})"
        lines.append(
            f"| {size} | {million(shape_of(arguments.run / f'{size}-{BASELINE}-{arguments.seeds[0]}'))} | {goal:.4f} "
            f"| {refined.loss_RE[:, -1].mean():.4f} | {difference(refined, baseline)} | {share} |"
        )
    return lines


def difference(kind: Kind, baseline: Kind) -> str:
    """Of the final losses, seed by seed, with its interval."""
    if kind is baseline:
        return ""
    difference_R = kind.loss_RE[:, -1] - baseline.loss_RE[:, -1]
    mean = difference_R.mean()
    if len(difference_R) < 2:
        return f"{mean:+.4f}"
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(difference_R) - 1) * stats.sem(difference_R)
    return f"{mean:+.4f} [{mean - half:+.4f}, {mean + half:+.4f}]"


def points_of(kind: Kind, seeds: Sequence[int], decay_tokens: int) -> list[dict[str, float | str]]:
    """Losses at a constant learning rate: the last part of the schedule gains what no longer training would keep."""
    stable_E = kind.tokens_E <= kind.tokens_E[-1] - decay_tokens
    return [
        {"compute_flops": float(tokens * kind.flops_per_token), "loss": float(loss), "run": f"seed {seed}"}
        for seed, loss_E in zip(seeds, kind.loss_RE, strict=True)
        for tokens, loss in zip(kind.tokens_E[stable_E], loss_E[stable_E], strict=True)
    ]


def as_json(kind: Kind, seeds: Sequence[int]) -> dict[str, object]:
    return {
        "seeds": list(seeds),
        "training_flops": kind.training_flops,
        "tokens": kind.tokens_E.tolist(),
        "loss_nats_per_token": {name: curve.loss_RE.tolist() for name, curve in kind.curves.items()},
    }


def million(shape: ModelShape) -> str:
    return f"{shape.num_parameters / 1e6:.2f}M"


if __name__ == "__main__":
    main()
