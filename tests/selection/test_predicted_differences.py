"""Difference sampling from what `fit-proxy` predicts, alone and beside the scores that it was fitted to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.artifacts.scores import NOT_SCORED, PREDICTED_DIFFERENCE
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.selection.sampling import difference_sample

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
    given = {"teacher_dir": None, "reference_dir": None, "predicted_dir": PREDICTED, **stores}
    summary = difference_sample(given.pop("teacher_dir"), given.pop("reference_dir"), Path(output), ratio=0.4, **given)
    return np.load(next(Path(output).glob("*.indices.npy"))).tolist(), summary


def test_predictions_alone() -> None:
    kept, summary = select("refined")
    assert kept == [0, 1]
    assert (summary["threshold"], summary["mean_difference"]) == (3.0, 2.5)
    assert [parent.role for parent in load_manifest(Path("refined")).inputs] == ["predicted differences"]


def test_a_known_difference_goes_before_a_predicted_one() -> None:
    kept, summary = select("refined", teacher_dir=TEACHER, reference_dir=REFERENCE)
    assert kept == [0, 3]
    assert (summary["threshold"], summary["mean_difference"]) == (4.0, 3.75)
    roles = [parent.role for parent in load_manifest(Path("refined")).inputs]
    assert roles == ["predicted differences", "teacher scores", "reference scores"]


def test_both_are_selections_of_their_own() -> None:
    select("refined")
    with pytest.raises(InputError, match="refined holds another selection"):
        select("refined", teacher_dir=TEACHER, reference_dir=REFERENCE)


def test_scores_of_a_sample_are_no_scores_of_the_corpus() -> None:
    message = r"teacher holds scores of a random part of the corpus \(3 of 5 sequences were left out\): .* fit-proxy"
    with pytest.raises(InputError, match=message):
        select("refined", teacher_dir=TEACHER, reference_dir=REFERENCE, predicted_dir=None)
    assert not Path("refined").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"predicted_dir": REFERENCE}, "reference holds NLLs, expected predicted differences: "),
        (
            {"teacher_dir": PREDICTED, "reference_dir": REFERENCE},
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
        select("refined", predicted_dir=Path("strange"), teacher_dir=TEACHER, reference_dir=REFERENCE)
    corpora = [write_corpus(Path("web2"), [[1, 2, 3]] * 4 + [[4]])]
    settings = {"quantity": PREDICTED_DIFFERENCE}
    write_scores(Path("masked"), corpora, [1.0] * 4 + [0], [2, 2, 2, 1, 0], settings=settings)
    write_scores(Path("teacher2"), corpora, [1.0] * 4 + [0], settings=SAMPLED)
    write_scores(Path("reference2"), corpora, [1.0] * 4 + [0])
    with pytest.raises(FingerprintMismatchError, match="sequence 3 has 2 scored tokens in teacher2 and 1 in masked"):
        select("refined", predicted_dir=Path("masked"), teacher_dir=Path("teacher2"), reference_dir=Path("reference2"))
