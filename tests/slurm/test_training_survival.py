"""Real training by `slurm/train.sbatch` on a real cluster that stops, preempts, loses and cancels it.

What was stopped has to go on where it was, and to learn what an undisturbed run learns.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from megatron_runs import REPOSITORY
from slurm_cluster import SlurmCluster
from slurm_training import (
    NUM_ITERATIONS,
    OURS,
    SLOW_ITERATION,
    STAGE,
    TrainingRun,
    train_undisturbed,
    training_flags,
    write_training_corpus,
)

from megatron_miniplm.mcore.device_flags import with_device_flags
from megatron_miniplm.mcore.versions import find_megatron

pytestmark = pytest.mark.slow

#: Of a whole training with its restarts, on a machine that does something else as well.
TIMEOUT_SECONDS = 240
SAVE_INTERVAL = 5
#: Left to itself, torchrun kills the ranks so long after it was told to stop.
TORCHRUN_PATIENCE_SECONDS = 30
STOCK_SCRIPT = "pretrain_gpt_017.py" if find_megatron().release < (0, 18) else "pretrain_gpt_018.py"
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
#: `python -c` of this and a script: says how it was started, emulates a GPU, and runs the script as it is.
ON_CPU = (
    f"import os, runpy, sys; sys.stdout.write(' '.join(['started as', *map(os.environ.get, {VARIABLES})]) + chr(10)); "
    "from megatron_miniplm.mcore import program, versions; program.prepare(versions.PLUG_IN); "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@dataclass(frozen=True)
class Trainings:
    """The runs of this module: one corpus, Megatron's index of it, and the losses of undisturbed runs."""

    directory: Path
    corpus: Path
    undisturbed: dict[int, dict[int, float]] = field(default_factory=dict)

    def run(
        self, slurm: SlurmCluster, name: str, *more: str, save_interval: int | None = None, **others: Any
    ) -> TrainingRun:
        return TrainingRun(slurm, self.directory / name, self.corpus, [*self.flags(save_interval), *more], **others)

    def flags(self, save_interval: int | None = None) -> list[str]:
        interval = {} if save_interval is None else {"save_interval": save_interval}
        return training_flags(self.directory / "cache", **interval)

    def losses(self, num_ranks: int) -> dict[int, float]:
        """By iteration; trained when it is asked for first."""
        if num_ranks not in self.undisturbed:
            directory = self.directory / f"undisturbed-{num_ranks}"
            self.undisturbed[num_ranks] = train_undisturbed(self.corpus, directory, self.flags(), num_ranks)
        return self.undisturbed[num_ranks]


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Trainings:
    directory = tmp_path_factory.mktemp("trainings")
    return Trainings(directory, write_training_corpus(directory / "corpus"))


def assert_equal_losses(curve: dict[int, float], undisturbed: dict[int, float], tolerance: float) -> float:
    """That a start has learned what an undisturbed run learns; returns the largest relative difference."""
    first = min(curve)
    assert list(curve) == list(range(first, first + len(curve)))
    for iteration, loss in curve.items():
        assert loss == pytest.approx(undisturbed[iteration], rel=tolerance, abs=0), iteration
    return max(abs(loss / undisturbed[iteration] - 1) for iteration, loss in curve.items())


def assert_interrupted_once(run: TrainingRun, undisturbed: dict[int, float], tolerance: float = 0) -> int:
    """That two starts have made one training between them; returns the iteration after which the first stopped."""
    assert run.outcomes(STAGE) == ["interrupted", "done"]
    first, second = run.curves()
    stopped = max(first)
    assert SLOW_ITERATION <= stopped < NUM_ITERATIONS
    assert (min(first), min(second), max(second)) == (1, stopped + 1, NUM_ITERATIONS)
    assert (run.checkpoint / f"iter_{stopped:07d}").is_dir()
    assert run.saved_iteration() == NUM_ITERATIONS
    assert run.is_done(STAGE)
    difference = max(assert_equal_losses(curve, undisturbed, tolerance) for curve in (first, second))
    print(f"\nstopped after iteration {stopped}, largest relative difference {difference:.2g}")
    return stopped


def test_time_limit(slurm: SlurmCluster, trainings: Trainings) -> None:
    """Slurm's own warning, in the middle of a training that has saved before, so that Megatron's helpers are running.

    Slurm looks every 30 s, and rather too early than too late: of these 2 minutes it leaves 60 to 90 s.
    """
    run = trainings.run(
        slurm,
        "time-limit",
        save_interval=SAVE_INTERVAL,
        slow_seconds=2,
        environment=["STOP_SECONDS=30"],
        TIME_TRAINING="2",
    )
    job = run.train()
    undisturbed = trainings.losses(1)
    slurm.wait(job, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    assert_interrupted_once(run, undisturbed)
    told, _ = run.attempts(STAGE)
    print(f"ended {told.seconds} s after its start, {120 - told.seconds} s before its time limit")
    assert slurm.show(job)["Restarts"] == "1"


def test_torchrun_lets_its_ranks_save(slurm: SlurmCluster, trainings: Trainings) -> None:
    """Told to stop in an iteration that takes longer than torchrun would wait for its ranks; two nodes."""
    run = trainings.run(
        slurm,
        "torchrun",
        num_nodes=2,
        slow_seconds=TORCHRUN_PATIENCE_SECONDS + 10,
        environment=["LAUNCHER=torchrun"],
    )
    job = run.train()
    undisturbed = trainings.losses(2)
    run.wait_for_iteration(job, SLOW_ITERATION - 1)
    slurm.signal(job, "TERM")
    slurm.wait(job, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    assert assert_interrupted_once(run, undisturbed, tolerance=2e-6) == SLOW_ITERATION
    assert "nodes node[1-2]" in slurm.output(job)


def test_preemption(slurm: SlurmCluster, trainings: Trainings) -> None:
    """Told to stop when a job of another partition needs its nodes: the grace time has to do for a checkpoint."""
    run = trainings.run(slurm, "preempted", save_interval=SAVE_INTERVAL, slow_seconds=2)
    job = run.train()
    run.wait_for_iteration(job, SLOW_ITERATION)
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", script="#!/bin/bash\ntrue\n")
    slurm.wait(urgent, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    slurm.wait(job, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    assert_interrupted_once(run, trainings.losses(1))
    assert slurm.show(job)["Restarts"] == "1"


def test_a_ghost_ends_before_the_next_start_trains(slurm: SlurmCluster, trainings: Trainings) -> None:
    """A node that Slurm has lost still trains and saves while Slurm starts the job on the other node."""
    run = trainings.run(slurm, "ghost", save_interval=SAVE_INTERVAL, slow_seconds=2, environment=["FENCE_SECONDS=2"])
    job = run.train()
    run.wait_for_iteration(job, SLOW_ITERATION)
    ghost, successor = f"{job}.0", f"{job}.1"
    saved = run.saved_iteration()
    slurm.kill_node(slurm.show(job)["NodeList"])
    slurm.wait_for(lambda: len(run.attempts(STAGE)) == 2, "the job starts again", TIMEOUT_SECONDS)
    assert run.processes_of(ghost)
    ghost_ended = successor_began = 0.0
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while slurm.state(job) != "COMPLETED":
        alive, training = run.processes_of(ghost), run.processes_of(successor)
        assert not (alive and training), "two starts train at the same time"
        ghost_ended = ghost_ended or (0.0 if alive else time.time())
        successor_began = successor_began or (time.time() if training else 0.0)
        assert time.monotonic() < deadline
    assert 0 < ghost_ended < successor_began
    assert run.outcomes(STAGE) == ["cancelled", "done"]
    assert slurm.show(job)["Restarts"] == "1"
    resumed = min(run.curves()[-1])
    print(f"\nlost at iteration {SLOW_ITERATION} or later, saved {saved}; the ghost saved {resumed - 1}, then ended ")
    print(f"{successor_began - ghost_ended:.1f} s before the next start began to train")
    assert resumed - 1 > saved
    written = {path: path.stat().st_mtime for path in run.checkpoint.rglob("*") if path.is_file()}
    assert not [path for path, seconds in written.items() if ghost_ended < seconds < successor_began]
    assert_equal_losses(run.curves()[-1], trainings.losses(1), 0)
    assert run.saved_iteration() == max(run.curves()[-1]) == NUM_ITERATIONS


def test_cancelled_is_cancelled(slurm: SlurmCluster, trainings: Trainings) -> None:
    run = trainings.run(
        slurm, "cancelled", save_interval=SAVE_INTERVAL, slow_seconds=2, environment=["FENCE_SECONDS=1"]
    )
    job = run.train()
    run.wait_for_iteration(job, SLOW_ITERATION)
    slurm.cancel(job)
    slurm.wait(job, "CANCELLED")
    assert run.outcomes(STAGE) == ["cancelled"]
    again = run.train()
    slurm.wait(again, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    assert slurm.state(job) == "CANCELLED"
    assert slurm.show(job)["Restarts"] == "0"
    assert run.outcomes(STAGE) == ["cancelled", "done"]
    last = run.curves()[-1]
    assert SLOW_ITERATION - 2 <= min(last) - 1 < NUM_ITERATIONS
    assert max(last) == NUM_ITERATIONS
    assert_equal_losses(last, trainings.losses(1), 0)
    print(f"\ncancelled after iteration {SLOW_ITERATION} or later, resumed after {min(last) - 1}")


def test_what_cannot_work_is_not_started_for_ever(slurm: SlurmCluster, trainings: Trainings) -> None:
    """A user's error, which torchrun turns into exit code 1, not once more; a crash so often as env.sh says."""
    wrong = trainings.run(
        slurm, "wrong", "--miniplm-selection", "no-such-selection", program=OURS, environment=["LAUNCHER=torchrun"]
    )
    broken = trainings.run(slurm, "broken", program=("-c", "raise RuntimeError"), environment=["MAX_FAILURES=2"])
    jobs = {run: run.train() for run in (wrong, broken)}
    for job in jobs.values():
        slurm.wait(job, "FAILED", timeout_seconds=TIMEOUT_SECONDS)
    assert "error: " in slurm.output(jobs[wrong])
    assert [(attempt.exit_code, attempt.outcome) for attempt in wrong.attempts(STAGE)] == [(2, "bad-input")]
    assert [(attempt.exit_code, attempt.outcome) for attempt in broken.attempts(STAGE)] == [(1, "failed")] * 2
    assert {run.is_done(STAGE) for run in jobs} == {False}
    assert "not started again: 2 failures" in slurm.output(jobs[broken])


def test_stock_script_under_srun(slurm: SlurmCluster, trainings: Trainings) -> None:
    """It knows nothing of srun: what torchrun would set is set for it."""
    script = REPOSITORY / "tests" / "support" / "stock_scripts" / STOCK_SCRIPT
    flags, _ = with_device_flags([], "cpu")
    run = trainings.run(slurm, "stock", *flags, num_ranks=2, program=("-c", ON_CPU, str(script)))
    job = run.train()
    undisturbed = trainings.losses(2)
    slurm.wait(job, "COMPLETED", timeout_seconds=TIMEOUT_SECONDS)
    lines = [
        line.partition("started as ")[2].split() for line in slurm.output(job).splitlines() if "started as" in line
    ]
    assert sorted(words[:4] for words in lines) == [["0", "2", "0", "2"], ["1", "2", "1", "2"]]
    assert {tuple(words[4:]) for words in lines} == {(slurm.show(job)["NodeList"], lines[0][5])}
    (curve,) = run.curves()
    print(f"\nlargest relative difference {assert_equal_losses(curve, undisturbed, 2e-6):.2g}")
    assert max(curve) == run.saved_iteration() == NUM_ITERATIONS
