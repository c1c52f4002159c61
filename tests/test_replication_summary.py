"""The arithmetic of examples/replication: paired differences, and which points a scaling curve is fitted to."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from megatron_miniplm.evaluation.curves import LossCurve

SCRIPT = Path(__file__).parents[1] / "examples" / "replication" / "summarize.py"
TOKENS_E = np.array([100, 200, 300, 400])


@pytest.fixture(scope="module")
def summarize() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


def kind_of(summarize: dict[str, Any], *loss_SRE: list[list[float]], flops_per_token: float = 10.0) -> Any:
    curves = {
        f"set {at}": LossCurve(tokens_E=TOKENS_E, loss_RE=np.array(loss_RE)) for at, loss_RE in enumerate(loss_SRE)
    }
    return summarize["Kind"](curves=curves, flops_per_token=flops_per_token)


def test_a_loss_is_the_mean_of_the_held_out_sets(summarize: dict[str, Any]) -> None:
    kind = kind_of(summarize, [[5.0, 4.0, 3.5, 3.0]], [[7.0, 6.0, 5.5, 4.0]])
    assert kind.loss_RE.tolist() == [[6.0, 5.0, 4.5, 3.5]]
    assert kind.training_flops == 4000.0


def test_differences_are_paired_by_seed(summarize: dict[str, Any]) -> None:
    """The interval is that of a paired t-test, whatever seeds have in common."""
    rng = np.random.default_rng(1)
    seed_luck_R1 = rng.normal(0, 1, (5, 1))
    baseline_RE = 4 + seed_luck_R1 + rng.normal(0, 0.01, (5, 4))
    refined_RE = 3.9 + seed_luck_R1 + rng.normal(0, 0.01, (5, 4))
    baseline, refined = kind_of(summarize, baseline_RE.tolist()), kind_of(summarize, refined_RE.tolist())
    low, high = stats.ttest_rel(refined_RE[:, -1], baseline_RE[:, -1]).confidence_interval(summarize["CONFIDENCE"])
    mean = (refined_RE - baseline_RE)[:, -1].mean()
    assert summarize["difference"](refined, baseline) == f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
    assert high - low < 0.1
    assert summarize["difference"](baseline, baseline) == ""


def test_no_point_is_taken_from_the_decay(summarize: dict[str, Any]) -> None:
    kind = kind_of(summarize, [[5.0, 4.0, 3.5, 3.0], [5.1, 4.1, 3.6, 3.1]])
    points = summarize["points_of"](kind, [1, 2], decay_tokens=150)
    assert points == [
        {"compute_flops": 1000.0, "loss": 5.0, "run": "seed 1"},
        {"compute_flops": 2000.0, "loss": 4.0, "run": "seed 1"},
        {"compute_flops": 1000.0, "loss": 5.1, "run": "seed 2"},
        {"compute_flops": 2000.0, "loss": 4.1, "run": "seed 2"},
    ]
