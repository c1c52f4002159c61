"""Scores of a real Megatron checkpoint: equal in every layout, and equal to transformers'."""

import numpy as np
import pytest
from huggingface_truth import nll_sum, read_checkpoint, to_huggingface
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    EDGE_LENGTHS,
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    TinyRun,
    directory_bytes,
    error_lines,
    run,
    run_real,
    score,
    score_command,
    write_corpus,
)

from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import TRAINING_DATA, load_manifest
from megatron_miniplm.artifacts.scores import ScoreStore

pytestmark = pytest.mark.slow

LAYOUT_TOLERANCE_NATS = 1e-5  # a token; float32 sums in another order
TRUTH_TOLERANCE_NATS = 2e-5  # a token; float32 against float64

#: Name -> processes and flags; one of them also with other micro-batches.
LAYOUTS = {
    "tp2": (2, "--tensor-model-parallel-size 2"),
    "pp2": (2, "--pipeline-model-parallel-size 2 --micro-batch-size 3"),
    "tp2-pp2": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
}


@pytest.fixture(scope="module")
def one_rank(tiny: TinyRun) -> ScoreStore:
    return score(tiny, "one-rank")


@pytest.fixture(scope="module")
def sequences(tiny: TinyRun) -> list[np.ndarray]:
    return [corpus.sequence(index) for corpus in tiny.corpora for index in range(len(corpus))]


def largest_difference_nats(nll: np.ndarray, others: np.ndarray, num_tokens: np.ndarray) -> float:
    """Per scored token."""
    return float(np.max(np.abs(nll.astype(np.float64) - others) / np.maximum(num_tokens, 1)))


def test_every_sequence_once_with_its_number_of_predictions(one_rank: ScoreStore, sequences: list[np.ndarray]) -> None:
    scores = one_rank.read_all()
    assert scores["num_tokens"].tolist() == [max(0, len(tokens) - 1) for tokens in sequences]
    assert {len(tokens) for tokens in sequences} >= set(EDGE_LENGTHS)
    assert np.all((scores["nll"] > 0) == (scores["num_tokens"] > 0))
    assert one_rank.plan.num_blocks == 4


def test_scores_name_what_their_model_was_trained_on(one_rank: ScoreStore, tiny: TinyRun) -> None:
    """The checkpoint's own `--data-path`: the first of the three prefixes that are scored."""
    parents = [parent for parent in load_manifest(one_rank.directory).inputs if parent.role == TRAINING_DATA]
    assert [parent_path(one_rank.directory, parent).resolve() for parent in parents] == [tiny.prefixes[0].resolve()]
    assert parents[0].fingerprint == tiny.corpora[0].fingerprint()


def test_scores_are_those_of_transformers(one_rank: ScoreStore, tiny: TinyRun, sequences: list[np.ndarray]) -> None:
    """Weights read by torch, model of transformers, windows one at a time, float64, without the padded rows."""
    scores = one_rank.read_all()
    weights = read_checkpoint(tiny.checkpoint / "iter_0000004")
    truth = [nll_sum(to_huggingface(weights), tokens) for tokens in sequences]
    assert largest_difference_nats(scores["nll"], truth, scores["num_tokens"]) < TRUTH_TOLERANCE_NATS
    wrong = to_huggingface(weights, swap_gate_and_up=True)
    wrong_nll = [nll_sum(wrong, tokens) for tokens in sequences]
    assert largest_difference_nats(scores["nll"], wrong_nll, scores["num_tokens"]) > 0.01, "the comparison has no teeth"


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_agree(one_rank: ScoreStore, tiny: TinyRun, name: str) -> None:
    num_processes, flags = LAYOUTS[name]
    store = score(tiny, name, *flags.split(), num_processes=num_processes)
    scores, expected = store.read_all(), one_rank.read_all()
    assert np.array_equal(scores["num_tokens"], expected["num_tokens"])
    assert largest_difference_nats(scores["nll"], expected["nll"], expected["num_tokens"]) < LAYOUT_TOLERANCE_NATS
    assert store.identity == one_rank.identity


def test_torchrun_writes_the_same_bytes(one_rank: ScoreStore, tiny: TinyRun) -> None:
    """The control of `rank_server`: a forked world against real processes."""
    flags = ["--use-checkpoint-args", *LAYOUTS["tp2"][1].split()]
    command = score_command(tiny.checkpoint, tiny.prefixes, tiny.directory / "torchrun", *flags, num_processes=2)
    process = run_real(command)
    assert process.returncode == 0, process.stderr[-4000:]
    forked = score(tiny, "forked", *flags[1:], num_processes=2)
    assert directory_bytes(forked.directory) == directory_bytes(tiny.directory / "torchrun")


def test_replicas_write_the_same_bytes(one_rank: ScoreStore, tiny: TinyRun) -> None:
    store = score(tiny, "dp2", num_processes=2)
    for block in range(one_rank.plan.num_blocks):
        assert store.block_path(block).read_bytes() == one_rank.block_path(block).read_bytes()
    for name in ("identity.json", "manifest.json"):
        assert (store.directory / name).read_bytes() == (one_rank.directory / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            [*ARCHITECTURE_FLAGS, "--hidden-size", "64", "--kv-channels", "8"],
            "iter_0000004 does not fit the flags: hidden_size is 32 there and 64 here: mend the flags, or give",
        ),
        (
            [*ARCHITECTURE_FLAGS, "--make-vocab-size-divisible-by", "256"],
            "iter_0000004 does not fit the flags: padded_vocab_size is 128 there and 256 here",
        ),
        (
            [*ARCHITECTURE_FLAGS, "--norm-epsilon", "1e-5"],
            "iter_0000004 does not fit the flags: layernorm_epsilon is 0.001 there and 1e-05 here",
        ),
        (
            ["--use-checkpoint-args", "--load", "nothing"],
            "nothing is not a Megatron checkpoint: it has no latest_check",
        ),
    ],
    ids=["shape", "padded vocabulary", "no shape", "no checkpoint"],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(tiny: TinyRun, flags: list[str], message: str) -> None:
    directory = tiny.directory / "refused"
    process = run(score_command(tiny.checkpoint, tiny.prefixes, directory, *flags))
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert message in line
    assert not directory.exists(), "the same directory must do once the flags are mended"


def test_an_error_of_every_rank_is_printed_once(tiny: TinyRun) -> None:
    """The launcher adds its own report of failed children, so only our lines are counted."""
    command = score_command(
        tiny.checkpoint,
        tiny.prefixes,
        tiny.directory / "refused",
        *(*ARCHITECTURE_FLAGS, "--norm-epsilon", "1e-5", "--tensor-model-parallel-size", "2"),
        *("--make-vocab-size-divisible-by", str(PADDED_VOCAB_SIZE // 2)),
        num_processes=2,
    )
    process = run(command)
    assert process.returncode != 0
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("error: "))
    assert "layernorm_epsilon is 0.001 there and 1e-05 here" in line


def test_a_corpus_of_another_tokenizer_is_one_line(tiny: TinyRun) -> None:
    foreign = write_corpus(tiny.directory / "foreign", [[1, 2], [3, VOCAB_SIZE]]).prefix
    directory = tiny.directory / "refused"
    process = run(score_command(tiny.checkpoint, [foreign], directory, "--use-checkpoint-args"))
    assert process.returncode == 2
    assert error_lines(process.stderr) == [
        f"error: {foreign}: sequence 1 holds token 100, the tokenizer has 100: "
        "give the tokenizer that the corpus was made with"
    ]
    assert not directory.exists()


def test_scores_of_another_corpus_are_one_line(one_rank: ScoreStore, tiny: TinyRun) -> None:
    prefixes = tiny.prefixes[::-1]
    process = run(score_command(tiny.checkpoint, prefixes, one_rank.directory, "--use-checkpoint-args"))
    assert process.returncode == 2
    assert error_lines(process.stderr) == [
        f"error: {one_rank.directory} holds scores of another corpus (name: first there, second here): "
        "give another --scores directory, or delete this one"
    ]
    one_rank.require_complete()
