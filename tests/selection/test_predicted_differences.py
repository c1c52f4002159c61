"""Difference sampling from what `fit-proxy` predicts, alone and beside the scores that it was fitted to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.artifacts.scores import NOT_SCORED, PREDICTED_DIFFERENCE
from megatron_miniplm.errors import FingerprintMismatchError, InputError

TEACHER, REFERENCE, PREDICTED = Path("teacher"), Path("reference"), Path("predicted")
SAMPLED = {"sample_fraction": 0.5, "sample_seed": 0}


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four sequences of 2 scored tokens and one of none; the predictions are 4, 3, 2 and 1, the truth of 1 and 3 is 0
    and 9."""
    monkeypatch.chdir(tmp_path)
    corpora = [write_corpus(Path("web"), [[1, 2, 3]] * 4 + [[4]])]
    write_scores(TEACHER, corpora, [0, 5, 0, 1, 0], [NOT_SCORED, 2, NOT_SCORED, 2, NOT_SCORED], settings=SAMPLED)
    write_scores(REFERENCE, corpora, [7, 5, 7, 19, 0], [2, 2, 2, 2, 0])
    write_scores(PREDICTED, corpora, [8, 6, 4, 2, 0], settings={"quantity": PREDICTED_DIFFERENCE})


def select(output: str, **stores: Any) -> tuple[list[int], dict[str, Any]]:
    """Keep two sequences."""
    given = {"teacher": None, "reference": None, "predicted": PREDICTED, **stores}
    summary = sample(output=Path(output), ratio=0.4, **given)
    return np.load(next(Path(output).glob("*.indices.npy"))).tolist(), summary


def test_predictions_alone() -> None:
    kept, summary = select("refined")
    assert kept == [0, 1]
    assert (summary["lowest_kept_value"], summary["mean_value"]) == (3.0, 2.5)
    assert [parent.role for parent in load_manifest(Path("refined")).inputs] == ["predicted differences", "corpus"]


def test_a_known_difference_goes_before_a_predicted_one() -> None:
    kept, summary = select("refined", teacher=TEACHER, reference=REFERENCE)
    assert kept == [0, 3]
    assert (summary["lowest_kept_value"], summary["mean_value"]) == (4.0, 3.75)
    roles = [parent.role for parent in load_manifest(Path("refined")).inputs]
    assert roles == ["predicted differences", "teacher scores", "reference scores", "corpus"]


def test_both_are_selections_of_their_own() -> None:
    select("refined")
    with pytest.raises(InputError, match="refined holds another selection"):
        select("refined", teacher=TEACHER, reference=REFERENCE)


def test_scores_of_a_sample_are_no_scores_of_the_corpus() -> None:
    message = r"teacher holds scores of a random part of the corpus \(3 of 5 sequences were left out\): .* fit-proxy"
    with pytest.raises(InputError, match=message):
        select("refined", teacher=TEACHER, reference=REFERENCE, predicted=None)
    assert not Path("refined").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"predicted": REFERENCE}, "reference holds NLLs, expected predicted differences: "),
        (
            {"teacher": PREDICTED, "reference": REFERENCE},
            "predicted holds predicted differences, expected NLLs: ",
        ),
    ],
)
def test_each_store_in_its_place(given: dict[str, Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        select("refined", **given)


def test_predictions_of_another_corpus_or_of_other_settings() -> None:
    corpora = [write_corpus(Path("books"), [[1, 2, 3]] * 5)]
    write_scores(Path("strange"), corpora, [1.0] * 5, settings={"quantity": PREDICTED_DIFFERENCE})
    with pytest.raises(FingerprintMismatchError, match=r"strange holds scores of books .* but teacher of web"):
        select("refined", predicted=Path("strange"), teacher=TEACHER, reference=REFERENCE)
    corpora = [write_corpus(Path("web2"), [[1, 2, 3]] * 4 + [[4]])]
    settings = {"quantity": PREDICTED_DIFFERENCE}
    write_scores(Path("masked"), corpora, [1.0] * 4 + [0], [2, 2, 2, 1, 0], settings=settings)
    write_scores(Path("teacher2"), corpora, [1.0] * 4 + [0], settings=SAMPLED)
    write_scores(Path("reference2"), corpora, [1.0] * 4 + [0])
    with pytest.raises(FingerprintMismatchError, match="sequence 3 has 2 scored tokens in teacher2 and 1 in masked"):
        select("refined", predicted=Path("masked"), teacher=Path("teacher2"), reference=Path("reference2"))
