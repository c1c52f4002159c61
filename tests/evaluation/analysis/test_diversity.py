"""Measures of diversity and vocabulary, against closed forms, plain sums and transformers."""

import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_models import CONFIGS
from hypothesis import given
from hypothesis import strategies as st
from word_models import write_word_model

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.analysis import diversity
from megatron_miniplm.evaluation.analysis.diversity import (
    RIDGE,
    HashedNgrams,
    ModelEmbedding,
    log_determinant_distance,
    mean_and_error,
    mean_cosine_distance,
    measure_vocabulary,
)


def unit_rows(num_rows: int, num_dimensions: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num_rows, num_dimensions))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_orthogonal_embeddings_are_most_diverse() -> None:
    basis = np.eye(12, dtype=np.float32)[:7]
    assert mean_cosine_distance(basis) == 1
    assert log_determinant_distance(basis) == 0


@pytest.mark.parametrize("num_rows", [2, 5, 40])
def test_identical_embeddings_are_least_diverse(num_rows: int) -> None:
    """K has the eigenvalue N (1 - r) + r once and r otherwise."""
    rows = np.repeat(unit_rows(1, 8), num_rows, axis=0)
    expected = -(math.log(num_rows * (1 - RIDGE) + RIDGE) + (num_rows - 1) * math.log(RIDGE)) / num_rows
    assert mean_cosine_distance(rows) == pytest.approx(0, abs=1e-6)
    assert log_determinant_distance(rows) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("cosine", [0.0, 0.3, -0.8])
def test_two_embeddings(cosine: float) -> None:
    rows = np.array([[1, 0], [cosine, math.sqrt(1 - cosine**2)]])
    assert mean_cosine_distance(rows) == pytest.approx(1 - cosine)
    assert log_determinant_distance(rows) == pytest.approx(-math.log(1 - ((1 - RIDGE) * cosine) ** 2) / 2)


def test_pairwise_distance_is_that_of_a_double_loop() -> None:
    rows = unit_rows(30, 6)
    distances = [1 - float(rows[i] @ rows[j]) for i in range(30) for j in range(30) if i != j]
    assert mean_cosine_distance(rows) == pytest.approx(np.mean(distances), abs=1e-6)


def test_fewer_topics_are_less_diverse() -> None:
    topics = unit_rows(20, 64)
    noise = 0.5 * unit_rows(200, 64, seed=1)
    many, few = (topics[np.arange(200) % num_topics] + noise for num_topics in (20, 3))
    many, few = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (many, few))
    assert mean_cosine_distance(many) > mean_cosine_distance(few)
    assert log_determinant_distance(many) < log_determinant_distance(few)


def test_standard_error_is_that_of_the_mean() -> None:
    assert mean_and_error([1.0, 2.0, 3.0, 6.0]) == (3.0, pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2))


def test_vocabulary_of_a_known_distribution() -> None:
    """Shares of 1/2, 1/4, 1/8 and 1/8 have 7/4 bits; the first three cover 7/8, all four are needed for nine tenths."""
    sequences = [np.array([1, 1, 1, 1, 2, 2]), np.array([3, 4]), np.array([9, 9])]
    found = measure_vocabulary(sequences, 8)
    assert (found.distinct, found.entropy_bits, found.covering) == (4, 1.75, 4)
    assert found.distinct_2 == 4 / 6, "1-1, 1-2, 2-2 and 3-4, of the six pairs within sequences"
    assert measure_vocabulary(sequences, 6).distinct == 2, "tokens beyond the budget do not count"
    assert measure_vocabulary([np.array([7] * 20)], 20).entropy_bits == 0


@given(st.lists(st.lists(st.integers(0, 6), min_size=1), min_size=1, max_size=8), st.data())
def test_vocabulary_is_that_of_plain_python(lists: list[list[int]], data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, sum(map(len, lists))))
    found = measure_vocabulary([np.array(one, np.uint16) for one in lists], budget)
    kept, pairs = [], []
    for one in lists:
        cut = one[: max(0, budget - len(kept))]
        pairs += pairwise(cut)
        kept += cut
    counts = sorted((kept.count(token) for token in set(kept)), reverse=True)
    assert found.distinct == len(counts)
    assert found.entropy_bits == pytest.approx(-sum(n / budget * math.log2(n / budget) for n in counts))
    assert found.covering == next(n for n in range(1, len(counts) + 1) if sum(counts[:n]) >= 0.9 * budget)
    assert found.distinct_2 == len(set(pairs)) / max(1, len(pairs))


def ngrams_by_hand(sequences: list[list[int]]) -> np.ndarray:
    """Cosines of TF-IDF of 1- and 2-grams, without hashing."""
    grams = [[*one, *pairwise(one)] for one in sequences]
    frequency = {gram: sum(gram in one for one in grams) for one in grams for gram in one}
    vectors = []
    for one in grams:
        values = {
            gram: (1 + math.log(one.count(gram))) * (1 + math.log((1 + len(grams)) / (1 + frequency[gram])))
            for gram in set(one)
        }
        vectors.append([values.get(gram, 0.0) for gram in frequency])
    rows = np.array(vectors)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows @ rows.T


def test_hashed_ngrams_have_the_cosines_of_tfidf(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few features in many dimensions nothing collides."""
    monkeypatch.setattr(HashedNgrams, "num_dimensions", 1 << 17)
    sequences = [[1, 2, 3, 1, 2], [1, 2, 9], [5], [3, 3, 3, 3], [2, 1]]
    arrays = [np.array(one, np.uint16) for one in sequences]
    unit_SD = HashedNgrams(arrays, seed=3).embed(arrays)
    assert unit_SD @ unit_SD.T == pytest.approx(ngrams_by_hand(sequences), abs=1e-6)


def test_hashing_is_without_bias() -> None:
    """The cosine of two sequences with a third of the tokens in common, over 40 hashes."""
    rng = np.random.default_rng(0)
    one, two = rng.integers(0, 50_000, 600), rng.integers(0, 50_000, 600)
    two[:200] = one[:200]
    exact = ngrams_by_hand([one.tolist(), two.tolist()])[0, 1]
    found = []
    for seed in range(40):
        unit_SD = HashedNgrams([one, two], seed=seed).embed([one, two])
        found.append(float(unit_SD[0] @ unit_SD[1]))
    assert abs(np.mean(found) - exact) < 4 * np.std(found) / math.sqrt(40)
    assert np.std(found) < 2 / math.sqrt(HashedNgrams.num_dimensions)


def test_the_same_seed_gives_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = [np.random.default_rng(seed).integers(0, 99, 20) for seed in range(50)]
    first = HashedNgrams(sequences, seed=1).embed(sequences)
    monkeypatch.setattr(diversity, "_BATCH_SEQUENCES", 7)
    assert (HashedNgrams(sequences, seed=1).embed(sequences) == first).all()
    assert (HashedNgrams(sequences, seed=2).embed(sequences) != first).any()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_word_model(tmp_path_factory.mktemp("model"))


def decode(tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
    return [" ".join(f"w{token}" for token in one).encode() for one in np.split(tokens_T, np.cumsum(lengths_N)[:-1])]


def test_a_models_embedding_is_the_mean_of_its_states(model_dir: Path) -> None:
    """Against the model fed one sequence at a time, without padding."""
    from transformers import AutoModel

    sequences = [np.array(tokens) for tokens in ([3, 4, 5, 6, 7, 8, 9, 10], [11], [12, 13, 14])]
    found = ModelEmbedding(model_dir, decode, max_tokens=5).embed(sequences)
    model = AutoModel.from_pretrained(model_dir, dtype=torch.float32).eval()
    for row_D, tokens_T in zip(found, sequences, strict=True):
        with torch.inference_mode():
            states_LD = model(torch.tensor(tokens_T[:5])[None]).last_hidden_state[0].numpy()
        mean_D = states_LD.mean(axis=0)
        assert row_D == pytest.approx(mean_D / np.linalg.norm(mean_D), abs=1e-5)


def test_a_tokenizer_that_makes_nothing_of_text_is_refused(model_dir: Path, tmp_path: Path) -> None:
    """transformers 5 loads Qwen2's own tokenizer class for a model of that type, whatever tokenizer lies there."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(model_dir, tmp_path / "model")
    AutoModelForCausalLM.from_config(CONFIGS["qwen2"]()).save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="makes no tokens of b'w3 w4': see that it is the model's own"):
        ModelEmbedding(tmp_path / "model", decode, max_tokens=5).embed([np.array([3, 4])])


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config\.json: give --embedding-model a Hugging Face model's"):
        ModelEmbedding(tmp_path, decode, max_tokens=5)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(InputError, match="cannot be loaded as a model with its tokenizer"):
        ModelEmbedding(tmp_path, decode, max_tokens=5)
