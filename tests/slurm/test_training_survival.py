"""Real training by `slurm/train.sbatch`, which SLURM stops before its time limit and preempts.

It has to continue where it stopped, and to learn what an undisturbed training learns. Lost nodes, cancellation,
torchrun and exit codes are tested with programs that cost less, in test_job_scripts.py.
"""

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster
from slurm_training import NUM_ITERATIONS, PATIENCE_SECONDS, SLOW_ITERATION, STAGE, TrainingRun, UndisturbedTraining

pytestmark = pytest.mark.slow


def test_a_time_limit_and_a_preemption(
    slurm: SlurmCluster, undisturbed_training: UndisturbedTraining, tmp_path: Path
) -> None:
    """Each comes after the start has saved a checkpoint, so that Megatron's helper processes for saving are running."""
    run = TrainingRun(slurm, tmp_path, undisturbed_training)
    run.order_seconds(2)
    job = run.train()
    run.wait_for_iteration(job, SLOW_ITERATION, PATIENCE_SECONDS)
    run.come_near_time_limit(job)
    slurm.wait_for_start(job, 2, PATIENCE_SECONDS)
    stopped = run.saved_iteration()
    assert SLOW_ITERATION <= stopped < NUM_ITERATIONS - 10

    run.forget_time_limit(job)
    next_save = stopped + 5 - stopped % 5
    run.wait_for_iteration(job, next_save + 1, PATIENCE_SECONDS)
    slurm.preempt_all(PATIENCE_SECONDS)
    slurm.wait_for_start(job, 3, PATIENCE_SECONDS)
    preempted = run.saved_iteration()
    assert next_save < preempted < NUM_ITERATIONS

    run.order_seconds(0)
    slurm.wait(job, "COMPLETED", timeout_seconds=PATIENCE_SECONDS)
    assert run.outcomes(STAGE) == ["interrupted", "interrupted", "done"]
    assert run.is_done(STAGE)
    curves = run.curves()
    assert [(min(curve), max(curve)) for curve in curves] == [
        (1, stopped),
        (stopped + 1, preempted),
        (preempted + 1, NUM_ITERATIONS),
    ]
    assert run.saved_iteration() == NUM_ITERATIONS
    learned = {iteration: loss for curve in curves for iteration, loss in curve.items()}
    assert learned == undisturbed_training.losses
    print(f"\nstopped after iterations {stopped} and {preempted}")
