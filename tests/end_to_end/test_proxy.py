"""The proxy's road with real Megatron: sampled scores -> fit -> predictions -> refined view."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import DATA_FLAGS, REPOSITORY, VOCAB_SIZE, TinyRun, environment, launcher, run, write_corpus
from rank_server import rank_server
from score_stores import write_scores

from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.scoring.identity import is_sampled

pytestmark = pytest.mark.slow

NUM_SEQUENCES = 1200
NUM_STEPS = 60
SAMPLED = {"sample_fraction": 0.5, "sample_seed": 0}
LAYOUT_TOLERANCE_NATS = 1e-3  # a token; 60 updates of float32 sums in another order, of differences of 3 nats


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """A corpus of which every second sequence counts upwards, and half of whose true differences are known.

    Attributes:
        is_pattern_N: bool; the teacher is better by 3 nats a token there, by none in uniform noise, give or take 0.3.
    """

    directory: Path
    corpus: IndexedCorpus
    is_pattern_N: np.ndarray


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    directory = tmp_path_factory.mktemp("proxy")
    rng = np.random.default_rng(11)
    lengths = rng.integers(8, 100, NUM_SEQUENCES)  # some of two windows
    is_pattern_N = np.arange(NUM_SEQUENCES) % 2 == 0
    sequences = [
        (rng.integers(VOCAB_SIZE) + np.arange(length)) % VOCAB_SIZE
        if is_pattern
        else rng.integers(0, VOCAB_SIZE, length)
        for length, is_pattern in zip(lengths, is_pattern_N, strict=True)
    ]
    corpus = write_corpus(directory / "pool", sequences)
    difference_N = np.where(is_pattern_N, 3.0, 0.0) + rng.normal(0, 0.3, NUM_SEQUENCES)
    known_N = is_sampled(range(NUM_SEQUENCES), fraction=0.5, seed=0)
    num_tokens = np.where(known_N, corpus.lengths_N - 1, NOT_SCORED)
    for role, nll_a_token in (("teacher", 5 - difference_N), ("reference", np.full(NUM_SEQUENCES, 5.0))):
        nll = np.where(known_N, nll_a_token * num_tokens, 0)
        write_scores(directory / role, [corpus], list(nll), list(num_tokens), block_sequences=200, settings=SAMPLED)
    return Sampled(directory=directory, corpus=corpus, is_pattern_N=is_pattern_N)


def fit_command(tiny: TinyRun, sampled: Sampled, name: str, *flags: str, num_processes: int = 1) -> list[str]:
    directory = sampled.directory
    return [
        *launcher(num_processes),
        str(REPOSITORY / "tools" / "fit_proxy.py"),
        *("--load", str(tiny.checkpoint), "--use-checkpoint-args", "--micro-batch-size", "8", *DATA_FLAGS),
        *("--corpus", str(sampled.corpus.prefix), "--block-sequences", "200"),
        *("--teacher-scores", str(directory / "teacher")),
        *("--reference-scores", str(directory / "reference")),
        *("--proxy-steps", str(NUM_STEPS), "--proxy-batch-sequences", "32", "--lr", "3e-3", "--log-interval", "1"),
        *("--holdout-fraction", "0.2", "--save", str(directory / f"{name}.checkpoint"), "--save-interval", "20"),
        *("--difference-scores", str(directory / name)),
        *flags,
    ]


def fit(tiny: TinyRun, sampled: Sampled, name: str, *flags: str, num_processes: int = 1) -> ScoreStore:
    process = run(fit_command(tiny, sampled, name, *flags, num_processes=num_processes))
    assert process.returncode == 0, process.stderr[-4000:]
    store = ScoreStore.open(sampled.directory / name)
    store.require_complete()
    return store


@pytest.fixture(scope="module")
def predicted(tiny: TinyRun, sampled: Sampled) -> ScoreStore:
    return fit(tiny, sampled, "undisturbed")


def test_what_the_proxy_says_of_held_out_sequences(predicted: ScoreStore) -> None:
    report = json.loads((predicted.directory / "agreement.json").read_text())
    assert report["num_sequences"] > 80
    assert report["num_training_sequences"] > 400
    assert report["overlap"] > 0.8
    assert report["pearson"] > 0.9
    assert report["r_squared"] > 0.8


def test_every_sequence_is_predicted(predicted: ScoreStore, sampled: Sampled) -> None:
    scores = predicted.read_all()
    assert scores["num_tokens"].tolist() == (sampled.corpus.lengths_N - 1).tolist()
    mean_N = scores["nll"] / scores["num_tokens"]
    unknown_N = ~is_sampled(range(NUM_SEQUENCES), fraction=0.5, seed=0)
    assert mean_N[unknown_N & sampled.is_pattern_N].mean() == pytest.approx(3, abs=0.3)
    assert mean_N[unknown_N & ~sampled.is_pattern_N].mean() == pytest.approx(0, abs=0.3)


def test_the_selection_takes_predictions(
    predicted: ScoreStore, sampled: Sampled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = [
        *("--teacher-scores", str(sampled.directory / "teacher")),
        *("--reference-scores", str(sampled.directory / "reference")),
    ]
    for name, flags in (("predicted", []), ("known", known)):
        output = tmp_path / name
        predictions = ["--difference-scores", str(predicted.directory), "--ratio", "0.5", "--output", str(output)]
        assert run_tool("difference-sampling", [*predictions, *flags]) == 0
        kept = np.load(next(output.glob("*.indices.npy")))
        assert sampled.is_pattern_N[kept].mean() > 0.9
        assert next(output.glob("pool_refined-*.idx")).exists()
    capsys.readouterr()
    assert run_tool("difference-sampling", [*known, "--ratio", "0.5", "--output", str(tmp_path / "sampled")]) == 2
    assert "predict the difference of the rest and give --difference-scores" in capsys.readouterr().err


def test_a_killed_fit_continues_to_the_same_predictions(predicted: ScoreStore, tiny: TinyRun, sampled: Sampled) -> None:
    command = fit_command(tiny, sampled, "disturbed")
    with rank_server().start(
        command, environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith("step 30 of") for line in lines), "the fit ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
    tracker = sampled.directory / "disturbed.checkpoint" / "latest_checkpointed_iteration.txt"
    assert tracker.read_text() == "20"
    store = fit(tiny, sampled, "disturbed")
    assert store.read_all().tobytes() == predicted.read_all().tobytes()


#: Name -> processes and flags.
LAYOUTS = {
    "dp2": (2, ""),
    "tp2-pp2": (4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_agree(predicted: ScoreStore, tiny: TinyRun, sampled: Sampled, name: str) -> None:
    num_processes, flags = LAYOUTS[name]
    scores = fit(tiny, sampled, name, *flags.split(), num_processes=num_processes).read_all()
    expected = predicted.read_all()
    difference = np.abs(scores["nll"] - expected["nll"]) / expected["num_tokens"]
    assert difference.max() < LAYOUT_TOLERANCE_NATS


def test_another_fit_in_the_same_directory(predicted: ScoreStore, tiny: TinyRun, sampled: Sampled) -> None:
    process = run(fit_command(tiny, sampled, "undisturbed", "--lr", "1e-3"))
    assert process.returncode == 2
    expected = (
        "undisturbed.checkpoint holds a proxy that is fitted otherwise (lr: 0.003 there, 0.001 here): give another"
    )
    assert expected in process.stderr


def test_a_directory_that_another_process_fits_into(tiny: TinyRun, sampled: Sampled) -> None:
    save = sampled.directory / "held.checkpoint"
    with sole_writer(save):
        process = run(fit_command(tiny, sampled, "held"))
        assert process.returncode == 2
        assert f"{save} is being written by another process" in process.stderr
        assert not list(save.glob("iter_*"))
