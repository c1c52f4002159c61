from pathlib import Path

import numpy as np
import pytest

from megatron_miniplm.baselines.proxy import (
    agreement,
    agreement_lines,
    correlation,
    discard_unfinished,
    mean_ranks,
    saved_steps,
)

TRUE = np.array([0.0, 1.0, 2.0, 3.0])


def test_a_perfect_prediction() -> None:
    assert agreement(TRUE, TRUE) == {
        "num_sequences": 4,
        "pearson": pytest.approx(1),
        "spearman": pytest.approx(1),
        "r_squared": 1,
        "ratio": 0.5,
        "overlap": 1,
        "overlap_at_random": 0.5,
    }


def test_literal() -> None:
    """Deviations of the true ones -1.5 -0.5 0.5 1.5, of the predicted -1 -1 -1 3: 6 / sqrt(5 * 12)."""
    report = agreement(np.array([0.0, 0.0, 0.0, 4.0]), TRUE)
    assert report["pearson"] == pytest.approx(6 / np.sqrt(60))
    assert report["r_squared"] == pytest.approx(1 - (0 + 1 + 4 + 1) / 5)
    # Ranks 2 2 2 4 against 1 2 3 4: deviations -0.5 -0.5 -0.5 1.5 and those above, 3 / sqrt(3 * 5).
    assert report["spearman"] == pytest.approx(3 / np.sqrt(15))
    # Sequences 3 and, of the equal ones, 0 are chosen; 2 and 3 would have been right.
    assert report["overlap"] == 0.5


def test_ranks_matter_and_scale_does_not() -> None:
    report = agreement(np.exp(TRUE * 3), TRUE)
    assert report["spearman"] == pytest.approx(1)
    assert report["overlap"] == 1
    assert report["pearson"] < 1
    assert report["r_squared"] < 0


def test_spearman_without_ties_is_the_textbook_formula() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.permutation(50), rng.permutation(50)
    expected = 1 - 6 * ((left - right) ** 2).sum() / (50 * (50**2 - 1))
    assert correlation(mean_ranks(left), mean_ranks(right)) == pytest.approx(expected)


def test_shuffled_truth_agrees_by_chance_only() -> None:
    rng = np.random.default_rng(1)
    true = rng.normal(size=10_000)
    report = agreement(rng.permutation(true), true)
    assert abs(report["pearson"]) < 0.03
    assert abs(report["spearman"]) < 0.03
    assert report["overlap"] == pytest.approx(0.5, abs=0.03)
    assert report["r_squared"] == pytest.approx(-1, abs=0.1)  # twice the variance


def test_a_constant_prediction_has_no_correlation() -> None:
    report = agreement(np.full(4, 1.5), TRUE)
    assert (report["pearson"], report["spearman"], report["r_squared"]) == (None, None, 0)
    assert "  Pearson correlation      none" in agreement_lines(report)


@pytest.mark.parametrize(
    ("files", "tracked", "steps", "left"),
    [
        (["proxy.json"], "20", 20, ["iter_0000020"]),
        (["proxy.json"], None, 0, []),
        (["proxy.json"], "", 0, []),  # killed while Megatron wrote the tracker
        (["proxy.json"], "release", None, ["iter_0000020", "iter_0000040"]),  # saved by something else
        ([], "20", 20, ["iter_0000020", "iter_0000040"]),  # not a directory of ours
    ],
)
def test_a_checkpoint_without_its_end_is_removed(
    tmp_path: Path, files: list[str], tracked: str | None, steps: int | None, left: list[str]
) -> None:
    for name in ("iter_0000020", "iter_0000040"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").write_bytes(b"weights")
    for name in files:
        (tmp_path / name).write_text("{}")
    if tracked is not None:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(tracked)
    assert saved_steps(tmp_path) == steps
    discard_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("iter_*")) == left
