"""What a refined dataset reads, against the selection itself."""

import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, MockGPTDataset
from megatron_runs import CONTEXT_TOKENS, write_corpus
from refined_runs import ScoredCorpora

from megatron_miniplm.artifacts.selections import Selection, copies_of
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed import write_view
from megatron_miniplm.training.dataset import (
    CONSUMED,
    STATISTICS,
    DifferenceSampledGPTDataset,
    parts_of,
)
from megatron_miniplm.training.index_cache import warn_of_stale_cache
from megatron_miniplm.training.refinement import Refinement

Build = Callable[..., Any]


def sequences_of(dataset: DifferenceSampledGPTDataset) -> Counter[int]:
    """How often each sequence stands in the document index."""
    return Counter(dataset.document_index.tolist())


def kept(directory: Path) -> list[set[int]]:
    return [set(prefix.indices().tolist()) for prefix in Selection.open(directory).prefixes]


def test_only_what_is_kept_is_drawn(build: Build, scored: ScoredCorpora) -> None:
    half = scored.select("half", ratio=0.5)
    blend = build(selection=[half])
    assert [type(dataset) for dataset in blend.datasets] == [DifferenceSampledGPTDataset] * 2
    for dataset, indices in zip(blend.datasets, kept(half), strict=True):
        assert set(sequences_of(dataset)) == indices
        assert 0 < len(indices) < len(dataset.dataset)
    for sample in range(len(blend)):
        assert blend[sample]["tokens"].shape == (CONTEXT_TOKENS,)


def test_prefixes_without_a_selection_and_other_splits_are_megatrons(build: Build, scored: ScoredCorpora) -> None:
    """Sample for sample, in a blend in which another prefix is refined."""
    paths = [str(corpus.prefix) for corpus in scored.corpora]
    options: dict[str, Any] = {"sizes": [120, 20, 10], "config": {"split": "80,15,5"}}
    theirs = build(**options)
    ours = build(selection=[scored.select("half", ratio=0.5)], **options)
    for split in (1, 2):
        for one, another in zip(ours[split].datasets, theirs[split].datasets, strict=True):
            assert len(one) == len(another)
            for position in range(len(one)):
                assert torch.equal(one[position]["tokens"], another[position]["tokens"])
                assert one[position].keys() == another[position].keys()
    web_only = scored.directory / "web_only"
    if not web_only.exists():
        from score_stores import write_scores
        from selections import sample

        for name in ("web_teacher", "web_reference"):
            write_scores(scored.directory / name, scored.corpora[:1], np.random.default_rng(len(name)).random(120))
        sample(scored.directory / "web_teacher", scored.directory / "web_reference", web_only, index_only=True)
    mixed = build(selection=[web_only], blend=(paths, [0.5, 0.5]))
    plain = build(blend=(paths, [0.5, 0.5]))
    assert len(sequences_of(mixed.datasets[0])) == 60
    for position in range(len(plain.datasets[1])):
        assert torch.equal(mixed.datasets[1][position]["tokens"], plain.datasets[1][position]["tokens"])


def test_the_split_is_that_of_the_prefix(build: Build, scored: ScoredCorpora) -> None:
    half = scored.select("half", ratio=0.5)
    train, _, _ = build(selection=[half], sizes=[60, 5, 5], config={"split": "50,40,10"})
    for dataset, indices, size in zip(train.datasets, kept(half), (120, 80), strict=True):
        assert set(sequences_of(dataset)) == {index for index in indices if index < size // 2}


@pytest.mark.parametrize("epochs", [1, 4])
def test_resampling_follows_the_weights(build: Build, scored: ScoredCorpora, epochs: int) -> None:
    """Each epoch has floor(weight) or one more of a sequence, another draw in each, and the mean is the weight."""
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    counts: list[np.ndarray] = []
    for seed in range(40):
        blend = build(int(epochs * 0.9 * 320), selection=[weighted], weighting="resample", config={"random_seed": seed})
        web = blend.datasets[0]
        first = Selection.open(weighted).prefixes[0]
        drawn = sequences_of(web)
        counts.append(np.array([drawn[index] for index in first.indices().tolist()]))
    weights = np.asarray(first.weights(), np.float64)
    num_epochs = round(np.sum(counts) / (40 * weights.sum()))
    assert num_epochs >= epochs
    fraction = weights - np.floor(weights)
    deviation = (np.sum(counts, axis=0) - 40 * num_epochs * weights) / np.sqrt(
        40 * num_epochs * np.maximum(fraction * (1 - fraction), 1e-3)
    )
    random = deviation[(fraction > 0.05) & (fraction < 0.95)]
    assert len(random) > 60
    excess = (np.square(random).sum() - len(random)) / np.sqrt(2 * len(random))
    assert abs(excess) < 4, "chi-square of independent draws, in standard deviations"
    assert len({tuple(count) for count in counts}) == 40


def test_epochs_are_drawn_anew(scored: ScoredCorpora) -> None:
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    refined = Refinement.open([str(weighted)], weighting="resample").of(str(scored.corpora[0].prefix))
    assert refined is not None
    epochs = [refined.epoch(0, 120, phase=0, epoch=epoch, seed=5) for epoch in (0, 1, 1)]
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[1].tolist() == epochs[2].tolist()
    assert epochs[0].dtype == np.int32


def test_loss_weights_are_those_of_the_labels(build: Build, scored: ScoredCorpora) -> None:
    """By walking through every sample token by token."""
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    blend = build(selection=[weighted], weighting="loss")
    selection = Selection.open(weighted)
    total_weight = sum(float(np.dot(p.weights(), _lengths(scored, p.name)[p.indices()])) for p in selection.prefixes)
    mean = total_weight / sum(prefix.num_tokens for prefix in selection.prefixes)
    for dataset, prefix in zip(blend.datasets, selection.prefixes, strict=True):
        weight_of = dict(zip(prefix.indices().tolist(), prefix.weights().tolist(), strict=True))
        value_of = dict(zip(prefix.indices().tolist(), prefix.values().tolist(), strict=True))
        for position in range(len(dataset)):
            row = dataset.shuffle_index[position]
            place, offset = dataset.sample_index[row].tolist()
            expected, values = [], []
            for step in range(CONTEXT_TOKENS + 1):
                while offset == dataset.dataset.sequence_lengths[dataset.document_index[place]]:
                    place, offset = place + 1, 0
                if step:
                    expected.append(weight_of[int(dataset.document_index[place])] / mean)
                    values.append(value_of[int(dataset.document_index[place])])
                offset += 1
            sample = dataset[position]
            np.testing.assert_allclose(sample["loss_mask"].numpy(), expected, rtol=1e-6, atol=1e-19)
            statistics = dict(zip(CONSUMED, sample[STATISTICS].tolist(), strict=True))
            finite = [value for value in values if np.isfinite(value)]
            assert statistics["tokens"] == CONTEXT_TOKENS
            assert statistics["valued_tokens"] == len(finite)
            assert statistics["value_sum"] == pytest.approx(sum(finite), rel=1e-5, abs=1e-4)
            assert statistics["weight_sum"] == pytest.approx(sum(expected) * mean, rel=1e-5)
    assert blend[0]["loss_mask"].dtype == torch.float32


def _lengths(scored: ScoredCorpora, name: str) -> np.ndarray:
    return next(corpus.lengths_N for corpus in scored.corpora if corpus.prefix.name == name)


def test_parts_are_the_tokens_of_the_sample(build: Build, scored: ScoredCorpora) -> None:
    dataset = build(selection=[scored.select("half", ratio=0.5)]).datasets[0]
    for position in range(len(dataset)):
        sequences, starts, lengths = parts_of(dataset, position)
        tokens = np.concatenate(
            [
                dataset.dataset.get(sequence, offset=start, length=length)
                for sequence, start, length in zip(sequences, starts.tolist(), lengths.tolist(), strict=True)
            ]
        )
        np.testing.assert_array_equal(tokens[:-1], dataset[position]["tokens"].numpy())
        np.testing.assert_array_equal(tokens[1:], dataset[position]["labels"].numpy())


def test_a_weight_of_zero_still_counts_as_a_token(scored: ScoredCorpora) -> None:
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    refined = Refinement.open([str(weighted)], weighting="loss").of(str(scored.corpora[0].prefix))
    assert refined is not None
    lowest = refined.selected.indices()[[int(np.argmin(refined.selected.weights()))]]
    _, weights = refined.look_up(lowest)
    assert weights[0] < 0.05
    assert refined.loss_weights(weights)[0] > 0


def test_data_workers_get_the_whole_dataset(build: Build, scored: ScoredCorpora) -> None:
    """Spawned ones get it pickled."""
    blend = build(selection=[scored.select("half", ratio=0.5)], weighting="loss", ratio_schedule="0:0.5,30:0.2")
    copy = pickle.loads(pickle.dumps(blend))
    for position in range(0, len(blend), 7):
        for key, value in blend[position].items():
            assert np.array_equal(copy[position][key], value)


def test_selections_of_another_corpus_are_refused(build: Build, scored: ScoredCorpora, tmp_path: Path) -> None:
    half = scored.select("half", ratio=0.5)
    view = scored.directory / "elsewhere"
    for suffix in (".bin", ".idx"):
        view.with_suffix(suffix).write_bytes(scored.corpora[0].prefix.with_suffix(suffix).read_bytes())
    with pytest.raises(InputError, match=r"no training prefix of the blend \(.*elsewhere\) is in the selection, which"):
        build(selection=[half], blend=([str(view)], None))
    with pytest.raises(InputError, match=r"is in .*half and in .*half: give one of them"):
        build(selection=[half, half])
    path = scored.corpora[0].prefix.with_suffix(".bin")
    original = path.read_bytes()
    try:
        path.write_bytes(bytes(1) + original[1:] if original[0] else b"\x01" + original[1:])
        with pytest.raises(
            FingerprintMismatchError, match=r"was selected from web \[\w{8}\], but .*web is now \[\w{8}\]"
        ):
            build(selection=[half])
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (MockGPTDataset, "--mock-data reads no corpus"),
        (type("GPTFIMDataset", (GPTDataset,), {}), "--fim-data permutes documents"),
        (type("SFTDataset", (), {}), "--sft trains on conversations"),
        (type("MyDataset", (GPTDataset,), {}), "this script builds MyDataset, expected GPTDataset"),
    ],
)
def test_other_datasets_are_refused(build: Build, scored: ScoredCorpora, cls: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(cls=cls, selection=[scored.select("half", ratio=0.5)])


def test_flags_that_would_do_nothing_are_refused(build: Build, scored: ScoredCorpora) -> None:
    with pytest.raises(InputError, match="--miniplm-weighting needs --miniplm-selection"):
        build(weighting="loss")
    with pytest.raises(InputError, match="--dataloader-type cyclic has another: use single"):
        build(selection=[scored.select("half", ratio=0.5)], ratio_schedule="0:0.5", dataloader_type="cyclic")


def test_a_prefix_of_which_nothing_is_kept(build: Build, scored: ScoredCorpora) -> None:
    """Megatron would look for tokens for ever."""
    half = scored.select("half", ratio=0.5)
    path = str(scored.corpora[0].prefix)
    num_first = min(kept(half)[0])
    assert num_first > 0
    split = f"{num_first},{120 - num_first},0"
    with pytest.raises(
        InputError, match=r"web has no token kept by the selection among its sequences 0 to \d+ \(train\)"
    ):
        build(selection=[half], blend=([path], None), config={"split": split})


def test_a_prefix_whose_files_are_links_is_the_prefix(build: Build, scored: ScoredCorpora, tmp_path: Path) -> None:
    half = scored.select("half", ratio=0.5)
    for suffix in (".bin", ".idx"):
        (tmp_path / f"linked{suffix}").symlink_to(scored.corpora[0].prefix.with_suffix(suffix))
    dataset = build(selection=[half], blend=([str(tmp_path / "linked")], None))
    assert set(sequences_of(dataset)) == kept(half)[0]


def test_a_view_is_not_the_prefix_that_it_is_of(build: Build, scored: ScoredCorpora, tmp_path: Path) -> None:
    view = write_view(scored.corpora[0], np.arange(50), tmp_path, label="some", settings={})
    with pytest.raises(InputError, match="give those prefixes, not views of them"):
        build(selection=[scored.select("half", ratio=0.5)], blend=([str(view)], None))


@pytest.mark.parametrize("what", ["indices", "weights", "values"])
def test_a_flipped_bit_is_not_trained_on(build: Build, scored: ScoredCorpora, tmp_path: Path, what: str) -> None:
    """Of the indices when they are drawn from; of weights and values when a sample has them."""
    from megatron_miniplm.training import dataset as module

    half = scored.directory / f"flipped_{what}"
    shutil.copytree(scored.select("half", ratio=0.5), half)
    path = next(half.glob(f"*_web.{what}.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    module._refinement.cache_clear()

    def read() -> None:
        dataset = build(selection=[half], weighting="loss")
        for position in range(len(dataset)):
            dataset[position]

    with pytest.raises(CorruptArtifactError, match=rf"web\.{what}\.npy: entries 0 to \d+ do not match their checksum"):
        read()


def test_multi_token_prediction_with_loss_weights_is_refused(build: Build, scored: ScoredCorpora) -> None:
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    with pytest.raises(InputError, match="--miniplm-weighting loss with --mtp-num-layers"):
        build(selection=[weighted], weighting="loss", mtp_num_layers=1)
    build(selection=[weighted], weighting="resample", mtp_num_layers=1)


def test_a_dry_run_that_a_script_does_not_know(build: Build, scored: ScoredCorpora) -> None:
    with pytest.raises(InputError, match="--miniplm-dry-run: a script that is started"):
        build(miniplm_dry_run=True)


def test_global_ids_beyond_int32(scored: ScoredCorpora) -> None:
    """The draws of a prefix that begins at sequence 3e9 are those of its global ids."""
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    refined = Refinement.open([str(weighted)], weighting="resample").of(str(scored.corpora[0].prefix))
    assert refined is not None
    far = replace(refined, selected=replace(refined.selected, start=3_000_000_000))
    drawn = far.epoch(0, 120, phase=0, epoch=0, seed=1)
    indices_K = np.asarray(far.selected.indices())
    expected = np.repeat(indices_K, copies_of(far.selected.weights(), indices_K + 3_000_000_000, seed=1))
    assert drawn.tolist() == expected.tolist()


def test_a_corpus_made_anew_under_an_old_name(build: Build, scored: ScoredCorpora, tmp_path: Path) -> None:
    """Megatron's index cache knows prefixes by path; a blend with a selection knows what they hold."""
    half = scored.select("half", ratio=0.5)
    place = tmp_path / "more"
    blend = ([str(scored.corpora[0].prefix), str(place)], [0.5, 0.5])
    for num_sequences in (40, 100):
        write_corpus(place, [[k % 50] * 20 for k in range(num_sequences)])
        other = build(400, selection=[half], blend=blend).datasets[1]
        assert set(sequences_of(other)) == set(range(num_sequences))


def test_a_cache_that_is_older_than_its_index(
    build: Build, scored: ScoredCorpora, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "plain"
    write_corpus(place, [[k % 50] * 20 for k in range(40)])
    warn_of_stale_cache(build(blend=([str(place)], None)))
    assert "warning" not in capsys.readouterr().out
    write_corpus(place, [[k % 50] * 20 for k in range(100)])
    dataset = build(blend=([str(place)], None))
    assert set(sequences_of(dataset)) == set(range(40)), "what is warned of"
    warn_of_stale_cache(dataset)
    assert "is older than" in capsys.readouterr().out
