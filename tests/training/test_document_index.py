"""The arrays are those of Megatron's own GPTDataset where it has them, and what theory says where it has not."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets import helpers
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron_runs import CONTEXT_TOKENS, dataset_config, random_sequences, write_corpus
from refined_runs import ScoredCorpora

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import InputError
from megatron_miniplm.training.document_index import (
    WHOLE_RUN,
    IndexSettings,
    NothingToTrainOnError,
    Phase,
    build_indices,
    phases_of,
    starts_in_prefix,
)
from megatron_miniplm.training.refinement import Refinement


def build(epoch_of: Callable[[int, int], np.ndarray], lengths: np.ndarray, **others: object) -> tuple[np.ndarray, ...]:
    given_settings = {"sequence_length": 8, "extra_tokens": 1, "num_samples": None, "seed": 3} | others
    return build_indices(epoch_of, lengths, IndexSettings(**given_settings), helpers.build_sample_idx)  # type: ignore[arg-type]


@pytest.mark.parametrize("epochs", [None, 0.3, 1.0, 1.1, 1.7, 1.9, 2.0, 2.5, 3.95, 7.2])
@pytest.mark.parametrize("split", [Split.train, Split.valid])
def test_equal_to_megatron(tmp_path: Path, epochs: float | None, split: Split) -> None:
    """With the last epoch apart and not, with one epoch and many, for a part of the sequences."""
    lengths = np.random.default_rng(1).integers(0, 3 * CONTEXT_TOKENS, 150)
    corpus = write_corpus(tmp_path / "data", random_sequences(lengths))
    chosen = np.flatnonzero(np.random.default_rng(2).random(150) < 0.6).astype(np.int32)
    num_samples = None if epochs is None else int(epochs * lengths[chosen].sum() / CONTEXT_TOKENS)
    indexed = IndexedDataset(str(corpus.prefix), multimodal=False, mmap=True)
    theirs = GPTDataset(
        indexed, str(corpus.prefix), chosen, num_samples, split, dataset_config(corpus.prefix, tmp_path / "cache")
    )
    ours = build(
        lambda phase, epoch: chosen,
        indexed.sequence_lengths,
        sequence_length=CONTEXT_TOKENS,
        num_samples=num_samples,
        seed=1234,
    )
    for mine, original in zip(ours, (theirs.document_index, theirs.sample_index, theirs.shuffle_index), strict=True):
        assert mine.dtype == original.dtype
        np.testing.assert_array_equal(mine, original)


def test_epochs_that_differ() -> None:
    """Each epoch has its own sequences, in a stream without a gap; the last is shuffled apart."""
    lengths = np.full(40, 4, np.int32)
    epochs = {epoch: np.arange(10 * epoch, 10 * epoch + 10, dtype=np.int32) for epoch in range(4)}
    documents, samples, shuffle = build(lambda phase, epoch: epochs[epoch], lengths, num_samples=16, epochs_differ=True)
    assert len(documents) == 40, "16 samples of 8 and one token need 129 of 160 tokens: four epochs"
    assert set(documents[:30]) == set(range(30))
    assert set(documents[30:]) == set(range(30, 40))
    assert sorted(shuffle) == list(range(len(samples) - 1))
    sans_final = (120 - 1) // 8
    assert sorted(shuffle[:sans_final]) == list(range(sans_final))


@settings(max_examples=60, deadline=None)
@given(
    starts=st.lists(st.integers(1, 60), max_size=3, unique=True),
    num_samples=st.integers(1, 80),
    sizes=st.lists(st.integers(1, 30), min_size=4, max_size=4),
    seed=st.integers(0, 5),
)
def test_phases(starts: list[int], num_samples: int, sizes: list[int], seed: int) -> None:
    """The tokens of a phase's samples are its sequences', but for what the sample before it began."""
    starts = [0, *sorted(start for start in starts if start < num_samples)]
    rng = np.random.default_rng(seed)
    bounds = np.cumsum([0, *sizes])
    lengths = rng.integers(1, 20, bounds[-1]).astype(np.int32)
    sets = [np.arange(first, stop, dtype=np.int32) for first, stop in pairwise(bounds)]
    documents, samples, shuffle = build(
        lambda phase, epoch: sets[phase], lengths, num_samples=num_samples, phase_starts=tuple(starts), seed=seed
    )
    assert len(shuffle) == len(samples) - 1 >= num_samples
    phase_of_sequence = np.searchsorted(bounds, documents, side="right") - 1
    ends = [*starts[1:], len(shuffle)]
    for phase, (start, end) in enumerate(zip(starts, ends, strict=True)):
        assert sorted(shuffle[start:end]) == list(range(start, end)), "samples are shuffled within their phase"
        for row in range(start, end):
            (first, _), (last, stop) = samples[row], samples[row + 1]
            parts = phase_of_sequence[first : last + 1] if stop or last == first else phase_of_sequence[first:last]
            expected = {phase} if row + 1 < end or phase == len(starts) - 1 else {phase, phase + 1}
            began_before = row == start or len(set(parts.tolist()) - {phase}) == 0
            assert set(parts[1:].tolist()) <= expected | ({phase} if began_before else set())
            assert parts.max() <= phase + (row + 1 == end)


def test_a_phase_keeps_what_it_needs_of_its_last_epoch() -> None:
    """Two phases of one set of 10 sequences of 8 tokens: 25 samples, then 5 more."""
    lengths = np.full(10, 8, np.int32)
    documents, samples, _ = build(
        lambda phase, epoch: np.arange(10, dtype=np.int32), lengths, num_samples=30, phase_starts=(0, 25)
    )
    counts = np.bincount(documents[:25], minlength=10)
    assert (counts.min(), counts.max()) == (2, 3), "epochs of a phase are whole, but for the last"
    assert len(samples) - 1 == 25 + 9, "a whole epoch of the last phase, less the extra token"


def test_nothing_to_train_on() -> None:
    with pytest.raises(NothingToTrainOnError):
        build(lambda phase, epoch: np.zeros(0, np.int32), np.ones(3, np.int32))
    with pytest.raises(NothingToTrainOnError):
        build(lambda phase, epoch: np.arange(3, dtype=np.int32), np.zeros(3, np.int32), num_samples=5)


Build = Callable[..., Any]


def test_phases_of_the_flags() -> None:
    assert phases_of(None, None) == WHOLE_RUN
    assert phases_of("0:1.0,50000:0.5", None) == (
        Phase(start_sample=0, ratio=1.0),
        Phase(start_sample=50000, ratio=0.5),
    )
    assert phases_of("0:0.5,100:0.25", "0:2,50:0") == (
        Phase(start_sample=0, ratio=0.5, temperature=2.0),
        Phase(start_sample=50, ratio=0.5, temperature=0.0),
        Phase(start_sample=100, ratio=0.25, temperature=0.0),
    )


@pytest.mark.parametrize(
    "schedule",
    ["", "0.5", "0:", "0:x", "x:0.5", "0:0", "0:1.5", "0:nan", "10:0.5", "0:1,0:0.5", "0:1,20:0.5,10:0.2", "0:1,-5:1"],
)
def test_bad_schedules(schedule: str) -> None:
    with pytest.raises(InputError, match=r"--miniplm-ratio-schedule .*: "):
        phases_of(schedule, None)


def test_a_temperature_needs_a_ratio() -> None:
    with pytest.raises(InputError, match="give --miniplm-ratio-schedule too"):
        phases_of(None, "0:1")
    with pytest.raises(InputError, match="'0:-1' is not SAMPLES:VALUE"):
        phases_of("0:1", "0:-1")


def test_starts_follow_the_blend_within_one_sample() -> None:
    """Megatron's own blending indices at every boundary."""
    from megatron.core.datasets import helpers

    weights = np.array([0.53, 0.3, 0.17])
    size = 5000
    dataset_index, sample_index = np.zeros(size, np.int16), np.zeros(size, np.int64)
    helpers.build_blending_indices(dataset_index, sample_index, weights, 3, size, False)
    phases = tuple(Phase(start_sample=start, ratio=0.5) for start in range(0, size, 97))
    for dataset, weight in enumerate(weights):
        starts = starts_in_prefix(phases, weight)
        for phase, start in zip(phases, starts, strict=True):
            drawn = int(np.count_nonzero(dataset_index[: phase.start_sample] == dataset))
            assert abs(drawn - start) <= 1


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("rule", [{}, {"sampling": "gumbel", "temperature": 0.3, "seed": 5}], ids=["top", "gumbel"])
def test_a_phase_keeps_what_a_selection_keeps(scored: ScoredCorpora, ratio: float, rule: dict[str, Any]) -> None:
    """Of a selection of everything, at any ratio, over all prefixes, ties and unscored sequences included."""
    name = rule.get("sampling", "top")
    everything = scored.select(f"all_{name}", ratio=1.0, **rule)
    expected = Selection.open(scored.select(f"{name}_{ratio}", ratio=ratio, **rule))
    refinement = Refinement.open([str(everything)], ratio_schedule=f"0:1.0,10:{ratio}")
    for prefix in expected.prefixes:
        refined = refinement.of(str(prefix.path))
        assert refined is not None
        whole = refined.epoch(0, prefix.num_source_sequences, phase=0, epoch=0, seed=1)
        assert whole.tolist() == list(range(prefix.num_source_sequences))
        chosen = refined.epoch(0, prefix.num_source_sequences, phase=1, epoch=0, seed=1)
        assert chosen.tolist() == prefix.indices().tolist()
        part = refined.epoch(20, 50, phase=1, epoch=0, seed=1)
        assert part.tolist() == [index for index in prefix.indices().tolist() if 20 <= index < 50]


def test_a_temperature_of_the_schedule_is_that_of_a_selection(scored: ScoredCorpora) -> None:
    everything = scored.select("all_top", ratio=1.0)
    expected = Selection.open(scored.select("gumbel_hot", ratio=0.4, sampling="gumbel", temperature=2.0, seed=1))
    refinement = Refinement.open([str(everything)], ratio_schedule="0:0.4", temperature_schedule="0:2.0,30:0")
    top = Selection.open(scored.select("top_0.4", ratio=0.4))
    for phase, selection in ((0, expected), (1, top)):
        for prefix in selection.prefixes:
            refined = refinement.of(str(prefix.path))
            assert refined is not None
            chosen = refined.epoch(0, prefix.num_source_sequences, phase=phase, epoch=0, seed=1)
            assert chosen.tolist() == prefix.indices().tolist()


def test_samples_come_from_their_phase(build: Build, scored: ScoredCorpora) -> None:
    """In a blend, over consumed samples; a sample at a boundary may begin with the end of the sequence before it."""
    from megatron_miniplm.training.dataset import parts_of

    everything = scored.select("all_top", ratio=1.0)
    blend = build(200, selection=[everything], ratio_schedule="0:1.0,80:0.3,150:0.1")
    kept = {
        ratio: [set(prefix.indices().tolist()) for prefix in Selection.open(directory).prefixes]
        for ratio, directory in {
            1.0: everything,
            0.3: scored.select("top_0.3", ratio=0.3),
            0.1: scored.select("top_0.1", ratio=0.1),
        }.items()
    }
    outside = {0.3: 0, 0.1: 0}
    seen_before = set()
    for position in range(200):
        dataset = int(blend.dataset_index[position])
        sequences, _, lengths = parts_of(blend.datasets[dataset], int(blend.dataset_sample_index[position]))
        drawn = set(sequences[lengths > 0].tolist())
        ratio = 1.0 if position < 80 else 0.3 if position < 150 else 0.1
        if ratio == 1.0:
            seen_before |= {(dataset, sequence) for sequence in drawn}
        else:
            outside[ratio] += len(drawn - kept[ratio][dataset])
    assert max(outside.values()) <= 4, "two prefixes, and at each boundary a sample and what it began"
    assert len([1 for dataset, sequence in seen_before if sequence not in kept[0.3][dataset]]) > 20


@pytest.mark.parametrize(
    ("rule", "schedule", "message"),
    [
        ({"ratio": 0.5}, "0:0.8", "asks for 0.8 of the scored sequences, .* holds 0.5: select again with --ratio 0.8"),
        ({"ratio": 1.0, "drop_negative": True}, "0:0.5", "was made with --per-domain or --drop-negative"),
    ],
)
def test_schedules_that_do_not_fit(scored: ScoredCorpora, rule: dict[str, Any], schedule: str, message: str) -> None:
    directory = scored.select("_".join(f"{key}{value}" for key, value in rule.items()), **rule)
    with pytest.raises(InputError, match=message):
        Refinement.open([str(directory)], ratio_schedule=schedule)


def test_a_blend_without_weights(build: Build, scored: ScoredCorpora) -> None:
    paths = [str(corpus.prefix) for corpus in scored.corpora]
    with pytest.raises(InputError, match="give every prefix of the blend once, with a weight"):
        build(None, selection=[scored.select("all_top", ratio=1.0)], blend=(paths, None), ratio_schedule="0:0.5")
