from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import random_sequences, write_corpus
from score_stores import identity_of, write_scores

from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.baselines.proxy_targets import TrainingStream, check_corpus, check_pair, read_targets
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.reader import Pool
from megatron_miniplm.scoring.identity import is_sampled

NUM_SEQUENCES = 400
SAMPLED = {"sample_fraction": 0.5, "sample_seed": 3}


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexedCorpus:
    monkeypatch.chdir(tmp_path)
    return write_corpus(Path("web"), [range(1 + index % 4) for index in range(NUM_SEQUENCES)])


def write(name: str, corpus: IndexedCorpus, nll: np.ndarray, known: np.ndarray, **settings: Any) -> ScoreStore:
    num_tokens = np.where(known, np.maximum(corpus.lengths_N - 1, 0), NOT_SCORED)
    nll = np.where(known & (num_tokens > 0), nll, 0)
    return write_scores(Path(name), [corpus], list(nll), list(num_tokens), block_sequences=100, settings=settings)


@pytest.fixture
def known() -> np.ndarray:
    return is_sampled(range(NUM_SEQUENCES), fraction=0.5, seed=3)


@pytest.fixture
def teacher(corpus: IndexedCorpus, known: np.ndarray) -> ScoreStore:
    return write("teacher", corpus, np.arange(NUM_SEQUENCES) / 8, known, **SAMPLED)


@pytest.mark.parametrize("is_complete", [False, True])
def test_differences_of_what_both_have_scored(
    corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore, is_complete: bool
) -> None:
    reference_nll = np.full(NUM_SEQUENCES, 50.0)
    reference = write("reference", corpus, reference_nll, known | is_complete, **({} if is_complete else SAMPLED))
    targets = read_targets(teacher, reference, holdout_fraction=0.25)
    num_tokens = np.maximum(corpus.lengths_N - 1, 0)
    assert targets.ids_M.tolist() == np.flatnonzero(known & (num_tokens > 0)).tolist()
    assert targets.num_tokens_M.tolist() == num_tokens[targets.ids_M].tolist()
    assert targets.difference_M == pytest.approx((50 - targets.ids_M / 8) / targets.num_tokens_M)


def test_standardised_by_the_training_part_alone(corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore) -> None:
    reference = write("reference", corpus, np.full(NUM_SEQUENCES, 50.0), known, **SAMPLED)
    targets = read_targets(teacher, reference, holdout_fraction=0.25)
    target_M, weight_M = targets.standardised()
    trained = targets.difference_M[~targets.is_held_out_M]
    assert (targets.mean, targets.std) == (pytest.approx(trained.mean()), pytest.approx(trained.std()))
    assert (target_M.mean(), target_M.std()) == (pytest.approx(0, abs=1e-12), pytest.approx(1))
    assert target_M * targets.std + targets.mean == pytest.approx(trained)
    assert (weight_M * targets.num_tokens_M[~targets.is_held_out_M]).tolist() == [1.0] * len(weight_M)
    assert len(targets.training_ids) == len(target_M)


def test_the_held_out_part_is_drawn_independently_of_the_sample(
    corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore
) -> None:
    """The hash of the sample itself would hold out the half of it that is below 0.25."""
    reference = write("reference", corpus, np.full(NUM_SEQUENCES, 50.0), known, **SAMPLED)
    targets = read_targets(teacher, reference, holdout_fraction=0.25)
    assert 0.15 < targets.is_held_out_M.mean() < 0.35
    again = read_targets(teacher, reference, holdout_fraction=0.25)
    assert np.array_equal(again.is_held_out_M, targets.is_held_out_M)
    more = read_targets(teacher, reference, holdout_fraction=0.5)
    assert np.all(more.is_held_out_M[targets.is_held_out_M])


def test_equal_scores_leave_nothing_to_learn(corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore) -> None:
    reference = write("reference", corpus, np.arange(NUM_SEQUENCES) / 8, known, **SAMPLED)
    with pytest.raises(InputError, match=r"teacher and reference are 0\.0000 nats a token: there is nothing to learn"):
        read_targets(teacher, reference, holdout_fraction=0.25)


def test_too_few_known_sequences(corpus: IndexedCorpus, teacher: ScoreStore) -> None:
    reference = write("reference", corpus, np.ones(NUM_SEQUENCES), np.arange(NUM_SEQUENCES) < 4, **SAMPLED)
    with pytest.raises(InputError, match=r"have both scored \d sequences, of which \d are held out: at least two are"):
        read_targets(teacher, reference, holdout_fraction=0.25)


def test_a_teacher_that_has_scored_everything(corpus: IndexedCorpus, teacher: ScoreStore) -> None:
    complete = write("complete", corpus, np.ones(NUM_SEQUENCES), np.full(NUM_SEQUENCES, True), sample_fraction=1.0)
    check_pair(teacher, complete)
    with pytest.raises(InputError, match="complete holds scores of every sequence: there is nothing to predict"):
        check_pair(complete, teacher)


def test_predictions_are_no_scores(corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore) -> None:
    predicted = write("predicted", corpus, np.ones(NUM_SEQUENCES), known, quantity="predicted difference")
    with pytest.raises(InputError, match="predicted holds predicted differences: give the NLLs"):
        check_pair(teacher, predicted)


def test_other_corpora_and_other_rules(corpus: IndexedCorpus, known: np.ndarray, teacher: ScoreStore) -> None:
    other = write_corpus(Path("books"), [[1, 2]] * NUM_SEQUENCES)
    stranger = write("stranger", other, np.ones(NUM_SEQUENCES), known, **SAMPLED)
    with pytest.raises(FingerprintMismatchError, match=r"teacher holds scores of web \[\w{8}\], but stranger of books"):
        check_pair(teacher, stranger)
    with pytest.raises(FingerprintMismatchError, match=r"teacher holds scores of web .* but --corpus is books"):
        check_corpus(teacher, identity_of([other], model="any")["corpus"])
    masked = write("masked", corpus, np.ones(NUM_SEQUENCES), known, **SAMPLED, masked_input=7)
    with pytest.raises(FingerprintMismatchError, match="teacher was scored with masked_input None, masked with 7"):
        check_pair(teacher, masked)


def make_stream(tmp_path: Path, seed: int = 0) -> tuple[Pool, np.ndarray, TrainingStream]:
    corpora = [
        write_corpus(tmp_path / name, random_sequences(lengths, seed=index))
        for index, (name, lengths) in enumerate({"first": range(2, 12), "second": range(20, 25)}.items())
    ]
    pool, ids = Pool(corpora), np.array([0, 3, 4, 9, 10, 14])
    return pool, ids, TrainingStream(pool, ids, seed=seed)


def test_every_pass_has_every_training_sequence_once(tmp_path: Path) -> None:
    _, _, stream = make_stream(tmp_path)
    passes = [stream.members(range(start, start + 6)).tolist() for start in (0, 6, 12)]
    assert [sorted(members) for members in passes] == [list(range(6))] * 3
    assert len({tuple(members) for members in passes}) == 3


def test_a_run_of_numbers_is_the_same_in_any_pieces_and_across_passes(tmp_path: Path) -> None:
    _, _, stream = make_stream(tmp_path)
    whole = stream.members(range(30)).tolist()
    _, _, other = make_stream(tmp_path)
    assert [member for start in range(0, 30, 4) for member in other.members(range(start, min(start + 4, 30)))] == whole
    assert TrainingStream(stream, np.arange(6), seed=1).members(range(30)).tolist() != whole


def test_numbers_lead_to_the_sequences(tmp_path: Path) -> None:
    pool, ids, stream = make_stream(tmp_path)
    members = stream.members(range(8))
    for number, member in enumerate(members):
        assert np.array_equal(stream.sequence(number), pool.sequence(int(ids[member])))
    assert stream.lengths(range(8)).tolist() == [len(pool.sequence(int(ids[member]))) for member in members]
