"""What we hand to training, in real Megatron: unpatched datasets on a view, and the student entry point."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_truth import read_checkpoint
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron_runs import (
    CONTEXT_TOKENS,
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    TinyRun,
    dataset_config,
    random_sequences,
    train,
    write_corpus,
)
from score_stores import write_scores
from selections import sample

from megatron_miniplm.indexed import IndexedCorpus, write_view


def one_epoch(prefix: Path, cache: Path) -> GPTDataset:
    """Megatron's dataset over all sequences of a prefix, as its own builder makes it."""
    config = dataset_config(prefix, cache)
    builder = BlendedMegatronDatasetBuilder(GPTDataset, [None, 0, 0], lambda: True, config)
    return builder.build()[0]


def stream_of(dataset: GPTDataset) -> np.ndarray:
    """The tokens of all samples in the order in which Megatron cut them."""
    order = np.argsort(dataset.shuffle_index)
    samples = [dataset[int(position)] for position in order]
    assert all(torch.equal(sample["labels"][:-1], sample["tokens"][1:]) for sample in samples)
    return torch.cat([sample["tokens"] for sample in samples]).numpy()


def test_unpatched_megatron_reads_exactly_the_selected_sequences(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    sequences = random_sequences(rng.integers(0, 3 * CONTEXT_TOKENS, 40))
    corpus = write_corpus(tmp_path / "corpus", sequences)
    selected = rng.permutation(40)[:17]
    view = write_view(corpus, selected, tmp_path / "views", label="refined", settings={})
    dataset = one_epoch(view, tmp_path / "cache")
    assert sorted(dataset.document_index.tolist()) == list(range(17))
    expected = np.concatenate([sequences[selected[document]] for document in dataset.document_index])
    stream = stream_of(dataset)
    assert len(stream) == (len(expected) - 1) // CONTEXT_TOKENS * CONTEXT_TOKENS
    assert np.array_equal(stream, expected[: len(stream)])


@pytest.fixture(scope="module")
def selection(tiny: TinyRun) -> Path:
    """Half of the tiny corpus by scores that grow with the sequence id."""
    directory = tiny.directory / "selection"
    corpora = tiny.corpora
    num_sequences = sum(len(corpus) for corpus in corpora)
    teacher = write_scores(tiny.directory / "teacher", corpora, np.zeros(num_sequences))
    reference = write_scores(tiny.directory / "reference", corpora, np.arange(num_sequences))
    sample(teacher.directory, reference.directory, directory, ratio=0.5, reduction="sum")
    return directory


@pytest.mark.slow
def test_a_student_trains_on_a_selection(tiny: TinyRun, selection: Path) -> None:
    words = (selection / "data_args.txt").read_text().split()
    assert [int(weight) for weight in words[::2]] == [IndexedCorpus.open(view).num_tokens for view in words[1::2]]
    assert len(words) == 4, "two prefixes, the empty one is left out"
    losses = train(tiny.directory, "--data-args-path", str(selection / "data_args.txt"), "--train-iters", "2")
    assert list(losses) == [1, 2]
    assert all(np.log(VOCAB_SIZE) < loss < 20 for loss in losses.values()), "an untrained model on uniform noise"


@pytest.mark.slow
def test_tensor_parallel_losses_agree(tiny: TinyRun) -> None:
    """One seed gives one model at any TP, where the padding is equal too: TP multiplies the divisor."""
    losses = train(
        tiny.directory,
        *("--tensor-model-parallel-size", "2", "--make-vocab-size-divisible-by", str(PADDED_VOCAB_SIZE // 2)),
        *("--train-iters", "4"),
        num_processes=2,
    )
    assert losses == pytest.approx(tiny.losses, abs=1e-4)


@pytest.mark.slow
def test_resumed_training_equals_straight_training(tiny: TinyRun, tmp_path: Path) -> None:
    """Bit for bit in weights and Adam's moments."""
    interrupted = tmp_path / "checkpoint"
    shutil.copytree(tiny.checkpoint / "iter_0000002", interrupted / "iter_0000002")
    (interrupted / "latest_checkpointed_iteration.txt").write_text("2")
    losses = train(
        tiny.directory,
        *("--train-iters", "4", "--load", str(interrupted), "--save", str(interrupted), "--save-interval", "4"),
    )
    assert list(losses) == [3, 4]
    assert losses[3] == tiny.losses[3]
    # The second line after a start is the mean of two iterations: Megatron's logging.
    assert losses[4] == pytest.approx(tiny.losses[4]) or losses[4] == pytest.approx(
        (tiny.losses[3] + tiny.losses[4]) / 2
    )
    straight = read_checkpoint(tiny.checkpoint / "iter_0000004")
    resumed = read_checkpoint(interrupted / "iter_0000004")
    assert straight.keys() == resumed.keys()
    assert any(name.startswith("optimizer.") for name in straight)
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name
