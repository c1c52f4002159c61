"""Real scoring by `slurm/score.sbatch`, through everything that happens to jobs.

What a job writes is compared byte by byte with the store of jobs that nobody disturbed. Exit codes, retries,
cancellation and torchrun are tested with programs that cost less, in test_job_scripts.py.
"""

import time
from collections.abc import Callable

import pytest
from scoring_jobs import block_times
from slurm_cluster import SlurmCluster
from slurm_jobs import kill_rank, processes_of_job
from slurm_scoring import NUM_BLOCKS, PATIENCE_SECONDS, STAGE, ScoringRun, SharedStore

pytestmark = pytest.mark.slow

NUM_REPLICAS = 2  # of 2 nodes with 1 rank each


def test_two_jobs_on_one_node_share_a_store(slurm_of_session: SlurmCluster, shared_store: SharedStore) -> None:
    """Nobody disturbs them: this is the store that others are compared with."""
    run = shared_store.run
    assert shared_store.claimants == set(shared_store.tasks), "not both jobs have scored"
    for task in shared_store.tasks:
        shown = slurm_of_session.show(task)
        assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "0")
        assert shown["NodeList"] == "node1"
    assert run.outcomes(f"{STAGE}.0") == run.outcomes(f"{STAGE}.1") == ["done"]
    run.require_equal(run.scores)
    assert run.num_lost == 0


def test_one_job_through_every_interruption(slurm: SlurmCluster, shared_store: SharedStore) -> None:
    """Two nodes with a rank each, which are replicas."""
    # Beside the other run: a manifest names the corpus by its path relative to the store.
    directory = shared_store.run.directory.with_name("interrupted")
    run = ScoringRun(slurm, directory, shared_store.checkpoint, shared_store.corpus, NODES_SCORING="2")
    run.order_seconds(2)
    job = run.submit(STAGE)

    def lose_a_slurmd() -> None:
        """The rank on that node goes on until the node is back."""
        slurm.kill_node("node2")
        slurm.declare_down("node2")
        slurm.restore_node("node2")

    def lose_a_rank() -> None:
        kill_rank(slurm, job, 1)

    def lose_the_first_node() -> None:
        """The batch script, rank 0 and its claims die with it, and nobody is told."""
        slurm.crash_node("node1")
        slurm.declare_down("node1")
        slurm.restore_node("node1")

    def come_near_the_time_limit() -> None:
        run.come_near_time_limit(job)

    def be_preempted() -> None:
        run.forget_time_limit(job)
        slurm.preempt_all(PATIENCE_SECONDS)

    interruptions: list[tuple[Callable[[], None], str | None, int]] = [
        # and how the interrupted start ends, and the most blocks of it that have to be computed again
        (lose_a_slurmd, "cancelled", NUM_REPLICAS),
        (lose_a_rank, "failed", NUM_REPLICAS),
        (lose_the_first_node, None, NUM_REPLICAS),
        (come_near_the_time_limit, "interrupted", 0),
        (be_preempted, "interrupted", 0),
    ]
    published: dict[str, int] = {}
    num_lost = 0
    started = time.monotonic()
    for number, (interrupt, outcome, most_redone) in enumerate(interruptions):
        run.wait_for_blocks(job, 3)
        before, begun = run.num_blocks, time.monotonic()
        processes = processes_of_job(slurm, job).keys()
        interrupt()
        slurm.wait_for_start(job, number + 2, PATIENCE_SECONDS)
        slurm.wait_for(
            lambda: processes.isdisjoint(processes_of_job(slurm, job)),  # noqa: B023
            "the processes of the start before are gone",
        )
        # The next start takes seconds to its first block.
        now, lost = block_times(run.scores), run.num_lost - num_lost
        print(
            f"{interrupt.__name__}: {len(now) - before} more blocks until all was over, {lost} to be done again, "
            f"starts again after {time.monotonic() - begun:.0f} s"
        )
        assert published.items() <= now.items(), "a finished block was written again"
        assert len(now) < NUM_BLOCKS, "the store is full too early: make the corpus larger"
        assert 0 <= lost <= most_redone
        published = now
        num_lost += lost
        assert run.outcomes(STAGE)[number] == outcome

    run.wait_for_blocks(job, 2)
    run.order_seconds(0)
    slurm.kill_controller()
    slurm.wait_for(lambda: (run.scores / "manifest.json").exists(), "the last block", PATIENCE_SECONDS)
    slurm.start_controller()
    shown = run.wait_for_end(job)
    print(
        f"in all {len(interruptions)} restarts, {run.num_lost} blocks of {NUM_BLOCKS} computed twice, "
        f"{time.monotonic() - started:.0f} s"
    )
    assert num_lost > 0, "no kill met a rank in the middle of a block"
    assert (shown["JobState"], shown["ExitCode"]) == ("COMPLETED", "0:0")
    assert shown["Restarts"] == str(len(interruptions))
    assert run.outcomes(STAGE) == [*(outcome for _, outcome, _ in interruptions), "done"]
    assert published.items() <= block_times(run.scores).items(), "a finished block was written again"
    run.require_equal(shared_store.run.scores)
