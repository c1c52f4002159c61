"""Saved at iteration 15, killed, resumed: what is read and learned is what an uninterrupted run reads and learns."""

import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from megatron_runs import CONTEXT_TOKENS, REPOSITORY, environment, run
from rank_server import rank_server
from refined_runs import NUM_ITERATIONS, ScoredCorpora, logged, training_command, write_scored_corpora

pytestmark = pytest.mark.slow

SAVED = 15
RECORDER = str(REPOSITORY / "tests" / "support" / "recording_pretrain.py")
#: 4 samples an iteration: the first boundary before the save, the second after it.
SCHEDULE = ("--miniplm-ratio-schedule", "0:1.0,33:0.5,79:0.3", "--miniplm-temperature-schedule", "0:0,50:1.0")
#: The batch grows from 2 to 4 after 24 samples (thresholds are tokens): 12 steps, then 24 steps to 120 samples.
GROWING = ("--step-batch-size-schedule", f"0:2 {24 * CONTEXT_TOKENS}:4", "--train-samples", "120")


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredCorpora:
    return write_scored_corpora(tmp_path_factory.mktemp("resumed"))


def command(scored: ScoredCorpora, directory: Path, *flags: str, num_processes: int = 1) -> list[str]:
    (directory / "read").mkdir(parents=True, exist_ok=True)
    return training_command(
        scored,
        directory / "log",
        *("--save-interval", str(SAVED), "--log-interval", "1", *SCHEDULE, *flags),
        num_processes=num_processes,
        program=(RECORDER, str(directory / "read")),
    )


def samples_read(directory: Path) -> Counter[str]:
    return Counter(line for path in (directory / "read").iterdir() for line in path.read_text().splitlines())


def kill_after(arguments: list[str], iteration: int) -> None:
    """Run until an iteration is logged, then kill it with all its processes."""
    with rank_server().start(
        arguments, environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = []
        for line in process.stdout:
            output.append(line)
            if f"iteration {iteration:8d}/" in line:
                os.killpg(process.pid, signal.SIGKILL)
                break
        else:
            raise AssertionError("".join(output)[-4000:])


@pytest.mark.parametrize("weighting", ["resample", "loss"])
def test_kill_and_resume(scored: ScoredCorpora, tmp_path: Path, weighting: str) -> None:
    """With a schedule of ratio and temperature; at the same and at another data-parallel size; then with ramp-up."""
    everything = scored.select("everything", ratio=1.0, weights="linear")
    ours = ("--miniplm-selection", str(everything), "--miniplm-weighting", weighting)
    if weighting == "loss":
        ours += (*GROWING, "--micro-batch-size", "1")
    whole = run(command(scored, tmp_path / "whole", *ours))
    assert whole.returncode == 0, whole.stderr[-4000:]
    uninterrupted = logged(tmp_path / "whole" / "log")
    last = max(uninterrupted["lm loss"])
    assert last == (36 if weighting == "loss" else NUM_ITERATIONS)
    checkpoint = str(tmp_path / "checkpoint")
    kill_after(command(scored, tmp_path / "killed", *ours, "--save", checkpoint), SAVED + 3)
    assert (tmp_path / "checkpoint" / "latest_checkpointed_iteration.txt").read_text() == str(SAVED)

    before = samples_read(tmp_path / "whole")
    for name, num_processes in (("same", 1), ("other", 2)):
        resumed = run(command(scored, tmp_path / name, *ours, "--load", checkpoint, num_processes=num_processes))
        assert resumed.returncode == 0, resumed.stderr[-4000:]
        losses = logged(tmp_path / name / "log")["lm loss"]
        assert list(losses) == list(range(SAVED + 1, last + 1))
        for iteration, loss in losses.items():
            expected = uninterrupted["lm loss"][iteration]
            tolerance = 0 if num_processes == 1 else 2e-6
            if iteration == SAVED + 2:
                continue  # after a start, Megatron's second logged loss is the mean of the first two
            assert loss == pytest.approx(expected, rel=tolerance, abs=0), iteration
        after = samples_read(tmp_path / name)
        assert after <= before
        assert sum(after.values()) == 4 * (last - SAVED)
        differences = logged(tmp_path / name / "log")["miniplm/mean difference"]
        assert differences[last] == pytest.approx(uninterrupted["miniplm/mean difference"][last], rel=1e-6)
