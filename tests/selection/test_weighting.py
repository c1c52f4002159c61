from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import directory_bytes, write_corpus
from score_stores import write_scores
from selections import on_ranks, sample

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.artifacts.selections import Selection, copies_of
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection import scored_corpus
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.weighting import NUM_BINS, Weighting, bins

NUM_SEQUENCES = 900


def fitted(kind: str, value_K: np.ndarray, *, cap: float = 10.0, temperature: float = 1.0) -> Weighting:
    rule = Rule(ratio=1, weights=kind, weight_cap=cap, weight_temperature=temperature)
    low, high = float(value_K.min()), float(value_K.max())
    counts = np.bincount(bins(value_K, low, high), minlength=NUM_BINS)
    weighting = Weighting.fitted(rule, low, high, counts)
    return weighting.balanced(lambda found: [found.partial_sums(part) for part in np.array_split(value_K, 3)])


@pytest.mark.parametrize("kind", ["softmax", "linear", "rank"])
@pytest.mark.parametrize("cap", [1.5, 10.0])
@given(seed=st.integers(0, 1000), num_kept=st.integers(2, 400))
def test_weights_have_mean_one_and_grow_with_the_value(kind: str, cap: float, seed: int, num_kept: int) -> None:
    value_K = np.random.default_rng(seed).gamma(2.0, 0.3, num_kept)
    if cap * (num_kept - 1) < num_kept:
        return  # the lowest may weigh nothing, so that the cap must be higher
    weight_K = fitted(kind, value_K, cap=cap).weights(value_K)
    assert weight_K.mean(dtype=np.float64) == pytest.approx(1, abs=2e-6)
    assert (np.diff(weight_K[np.argsort(value_K)]) >= 0).all()
    assert weight_K.max() <= cap


def test_literal_weights() -> None:
    value_K = np.array([0.0, 1.0, 2.0, 5.0])
    assert fitted("linear", value_K).weights(value_K).tolist() == pytest.approx([0, 0.5, 1, 2.5])
    exponential = np.exp(value_K / 2)
    softmax = fitted("softmax", value_K, temperature=2.0).weights(value_K)
    assert softmax.tolist() == pytest.approx((4 * exponential / exponential.sum()).tolist())
    assert fitted("linear", value_K, cap=2.0).weights(value_K).tolist() == pytest.approx([0, 2 / 3, 4 / 3, 2])
    ranks = fitted("rank", np.arange(1001.0)).weights(np.arange(1001.0))
    assert ranks == pytest.approx(2 * np.arange(1001) / 1000, abs=0.01)


def test_equal_values_weigh_one() -> None:
    for kind in ("softmax", "linear", "rank"):
        assert fitted(kind, np.full(5, 0.3)).weights(np.array([0.3, -np.inf])).tolist() == [1, 1]


def test_a_cap_that_leaves_too_little() -> None:
    with pytest.raises(InputError, match=r"--weight-cap 1.5: too few"):
        fitted("linear", np.array([0.0, 0.0, 0.0, 1.0]), cap=1.5)


@pytest.fixture
def stores(tmp_path: Path) -> list[ScoreStore]:
    rng = np.random.default_rng(2)
    corpora = [write_corpus(tmp_path / name, [[1, 2, 3]] * 450) for name in ("web", "books")]
    return [
        write_scores(tmp_path / model, corpora, rng.normal(5, 1, NUM_SEQUENCES)) for model in ("teacher", "reference")
    ]


@pytest.mark.parametrize("weights", ["none", "softmax", "linear", "rank"])
def test_files_are_equal_on_any_number_of_ranks(
    stores: list[ScoreStore], tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scored_corpus, "CHUNK_SEQUENCES", 64)
    directories = [store.directory for store in stores]
    for num_ranks in (1, 2, 3):
        output = tmp_path / "outputs" / f"{num_ranks}" / "refined"
        on_ranks(lambda ranks, output=output: sample(*directories, output, weights=weights, ranks=ranks), num_ranks)
    first, *others = (directory_bytes(tmp_path / "outputs" / f"{n}" / "refined") for n in (1, 2, 3))
    for files in (first, *others):
        del files["data_args.txt"]  # absolute paths
    assert others == [first, first]
    selection = Selection.open(tmp_path / "outputs" / "3" / "refined")
    weight_K = np.concatenate([prefix.weights() for prefix in selection.prefixes])
    assert (len(weight_K), weight_K.dtype) == (450, np.float32)
    assert weight_K.mean(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    assert (weight_K == 1).all() == (weights == "none")


@pytest.mark.parametrize("weights", ["softmax", "linear", "rank"])
@pytest.mark.filterwarnings("error")
def test_nothing_kept_weighs_nothing(stores: list[ScoreStore], tmp_path: Path, weights: str) -> None:
    summary = sample(*(store.directory for store in stores), tmp_path / "refined", threshold=1e6, weights=weights)
    assert summary["num_kept"] == 0
    assert [prefix.weights().tolist() for prefix in Selection.open(tmp_path / "refined").prefixes] == [[], []]
    assert (tmp_path / "refined" / "data_args.txt").read_text() == ""


def test_copies_have_the_weight_as_their_mean() -> None:
    weight_N = np.array([0.0, 0.25, 1.0, 2.75, 3.0])
    ids_N = np.arange(5)
    copies = np.array([copies_of(weight_N, ids_N, seed=seed) for seed in range(4000)])
    assert (copies >= np.floor(weight_N)).all()
    assert (copies <= np.ceil(weight_N)).all()
    assert copies.mean(axis=0) == pytest.approx(weight_N, abs=4 * 0.5 / np.sqrt(4000))
    epochs = np.array([copies_of(weight_N, ids_N, seed=1, epoch=epoch)[3] for epoch in range(100)])
    assert set(epochs.tolist()) == {2, 3}, "another draw in every epoch"
    assert copies_of(weight_N, ids_N, seed=5)[3:].tolist() == copies_of(weight_N[3:], ids_N[3:], seed=5).tolist()


def test_views_repeat_by_weight(stores: list[ScoreStore], tmp_path: Path) -> None:
    output = tmp_path / "refined"
    sample(*(store.directory for store in stores), output, weights="softmax", repeat=True, seed=4)
    selection = Selection.open(output)
    num_tokens = []
    for prefix in selection.prefixes:
        assert prefix.view is not None
        copies = copies_of(prefix.weights(), prefix.indices() + prefix.start, seed=4)
        view, source = IndexedCorpus.open(prefix.view), IndexedCorpus.open(prefix.path)
        assert view.pointers_N.tolist() == np.repeat(source.pointers_N[prefix.indices()], copies).tolist()
        num_tokens.append(view.num_tokens)
    assert [int(word) for word in (output / "data_args.txt").read_text().split()[::2]] == num_tokens
    assert sum(num_tokens) == pytest.approx(3 * 450, rel=0.1)
