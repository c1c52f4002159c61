"""Scoring jobs, as slurm/score.sbatch runs them, through all that befalls jobs: they end as if nothing had happened.

What a job writes is compared byte by byte with the store of a job that nobody disturbed.
"""

import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from megatron_runs import DATA_FLAGS, TinyRun, directory_bytes, random_sequences, write_corpus
from scoring_jobs import block_times, litter
from slurm_cluster import SlurmCluster
from slurm_jobs import PipelineRun, kill_rank, program_path, ranks_of, write_program

from megatron_miniplm.artifacts.heartbeats import CLAIMS, in_flight
from megatron_miniplm.artifacts.scores import ScoreStore

pytestmark = pytest.mark.slow

STAGE = "score-teacher"
BLOCK_SEQUENCES, NUM_BLOCKS, SEQUENCE_TOKENS = 250, 110, 15
#: Lets pass what a run writes beside blocks (identity, claims), but no block of 250 sequences: 2,144 bytes.
DISK_BYTES = 2000
NUM_REPLICAS = 2  # of 2 nodes x 2 ranks with TP2
#: Time in which two cores that do other things as well start four ranks, and more.
PATIENCE_SECONDS = 400
PACED_SCORING = Path(__file__).parents[1] / "support" / "paced_scoring.py"


class ScoringRun(PipelineRun):
    """Scores of the teacher over the scene's corpus, two ranks a node, TP2."""

    def __init__(
        self,
        slurm: SlurmCluster,
        directory: Path,
        checkpoint: Path,
        corpus: Path,
        *,
        programs: Iterable[Path] = (),
        **settings: str,
    ) -> None:
        flags = [*DATA_FLAGS, "--micro-batch-size", "8", "--miniplm-block-sequences", str(BLOCK_SEQUENCES)]
        model = ["--load", checkpoint, "--use-checkpoint-args"]
        configuration = {
            "CORPUS": [corpus],
            "TOKENIZER": ["--tokenizer-type", "NullTokenizer"],
            "TEACHER_MODEL": model,
            "REFERENCE_MODEL": model,
            "SCORING": [*flags, "--tensor-model-parallel-size", "2"],
            "TIME_SCORING": "30",
            **settings,
        }
        super().__init__(slurm, directory, configuration, programs=[*programs, directory / "programs"])
        self._orders = directory / "orders"
        self._orders.mkdir()
        write_program(
            directory / "programs" / "miniplm",
            f'MINIPLM_TEST_ORDERS="{self._orders}" exec "{sys.executable}" "{PACED_SCORING}" "$@"\n',
        )

    @property
    def scores(self) -> Path:
        return self.directory / "scores" / "teacher"

    @property
    def num_blocks(self) -> int:
        return len(block_times(self.scores))

    def order(self, name: str, text: str = "") -> None:
        """Tell running and future ranks, see paced_scoring.py."""
        path = self._orders / name
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").rename(path)

    def withdraw(self, name: str) -> None:
        (self._orders / name).unlink()

    def begin(self, undisturbed: Path) -> None:
        """Begin the store with the first block of another."""
        shutil.copytree(undisturbed, self.scores)
        rest = [self.scores / "manifest.json", self.scores / "checksums.npy", *sorted(self.scores.glob("blocks/*"))[1:]]
        for path in rest:
            path.unlink()

    def wait_for_blocks(self, job: str, num_blocks: int) -> None:
        """Wait until a job that is running has published so many more."""
        self.slurm.wait(job, "RUNNING", timeout_seconds=PATIENCE_SECONDS)
        enough = self.num_blocks + num_blocks
        assert enough < NUM_BLOCKS, "the store is full too early: make the corpus larger"
        self.slurm.wait_for(lambda: self.num_blocks >= enough, f"{enough} blocks", PATIENCE_SECONDS)

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Wait until a job has ended, however; returns what Slurm shows of it."""
        self.slurm.wait(job, timeout_seconds=PATIENCE_SECONDS)
        return self.slurm.show(job)

    @property
    def num_lost(self) -> int:
        """Blocks that somebody began to work on and did not publish, while nobody works."""
        begun = [int(line) for line in (self._orders / "begun").read_text().splitlines()]
        return sum(block < NUM_BLOCKS for block in begun) - self.num_blocks  # who finishes the store claims the next


class Scene:
    """A tiny model, a corpus, and its scores by a job of 2 nodes x 2 ranks that nobody disturbed."""

    def __init__(self, slurm: SlurmCluster, tiny: TinyRun, directory: Path) -> None:
        self.checkpoint = tiny.checkpoint
        self._directory = directory
        self.corpus = directory / "corpus"
        write_corpus(self.corpus, random_sequences([SEQUENCE_TOKENS] * (NUM_BLOCKS * BLOCK_SEQUENCES)))
        run = self.run(slurm, "undisturbed", NODES_SCORING="2")
        started = time.monotonic()
        job = run.wait_for_end(run.submit(STAGE))
        assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "0")
        assert run.outcomes(STAGE) == ["done"]
        assert run.is_done(STAGE)
        self.undisturbed = run.scores
        print(f"\nundisturbed: {NUM_BLOCKS} blocks, {time.monotonic() - started:.0f} s with the start")

    def run(self, slurm: SlurmCluster, name: str, *, programs: Iterable[Path] = (), **settings: str) -> ScoringRun:
        return ScoringRun(slurm, self._directory / name, self.checkpoint, self.corpus, programs=programs, **settings)

    def require_undisturbed(self, run: ScoringRun) -> None:
        """A store is as if nothing had happened."""
        ScoreStore.open(run.scores).require_complete()
        assert litter(run.scores) == []
        assert directory_bytes(run.scores) == directory_bytes(self.undisturbed)
        assert run.is_done(STAGE)


@pytest.fixture(scope="module")
def scene(slurm_of_session: SlurmCluster, tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(slurm_of_session, tiny, tmp_path_factory.mktemp("survival"))


# ---- one job through everything


def test_one_job_through_every_interruption(slurm: SlurmCluster, scene: Scene) -> None:
    run = scene.run(slurm, "survivor", NODES_SCORING="2")
    run.order("seconds", "2")
    job = run.submit(STAGE)

    def lose_a_slurmd() -> None:
        slurm.kill_node("node2")
        slurm.wait_for(lambda: slurm.node_state("node2").startswith("down"), "node2 is given up", PATIENCE_SECONDS)
        slurm.restore_node("node2")

    def lose_a_rank() -> None:
        kill_rank(slurm, job, 2)  # it writes what the second replica computes

    def come_near_the_time_limit() -> None:
        slurm.run("scontrol", "update", f"jobid={job}", "EndTime=now+2minutes")

    def be_preempted() -> None:
        flags = ("--partition=urgent", "--nodes=2", "--ntasks-per-node=8")
        urgent = slurm.submit(*flags, script="#!/bin/bash\nsleep 1\n")
        slurm.wait(urgent, "COMPLETED", timeout_seconds=PATIENCE_SECONDS)

    interruptions: list[tuple[Callable[[], None], str, int]] = [
        # and how the start ends that was met, and the most blocks of it that are to be computed again
        (lose_a_slurmd, "cancelled", NUM_REPLICAS),
        (lose_a_rank, "failed", NUM_REPLICAS),
        (come_near_the_time_limit, "interrupted", 0),
        (be_preempted, "interrupted", 0),
    ]
    published: dict[str, int] = {}
    num_lost = 0
    started = time.monotonic()
    for number, (interrupt, outcome, most_redone) in enumerate(interruptions):
        run.wait_for_blocks(job, 3)
        before, begun = run.num_blocks, time.monotonic()
        interrupt()
        slurm.wait_for(
            lambda: slurm.show(job)["Restarts"] == str(number + 1) and slurm.state(job) == "RUNNING",  # noqa: B023
            f"start {number + 2}",
            PATIENCE_SECONDS,
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
        slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=30")
        assert run.outcomes(STAGE)[number] == outcome

    run.wait_for_blocks(job, 2)
    run.order("seconds", "0")
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
    scene.require_undisturbed(run)


def test_torchrun_lets_ranks_finish_their_blocks(slurm: SlurmCluster, scene: Scene) -> None:
    run = scene.run(slurm, "torchrun", NODES_SCORING="2")
    run.configure(environment="LAUNCHER=torchrun")
    run.order("seconds", "2")
    job = run.submit(STAGE)
    run.wait_for_blocks(job, 3)
    ranks = ranks_of(slurm, job)
    assert sorted(ranks) == [0, 1, 2, 3]
    begun, before = time.monotonic(), block_times(run.scores)
    slurm.signal(job, "TERM")  # what --signal and a preemption send
    slurm.wait_for(lambda: slurm.show(job)["Restarts"] == "1", "the job requeues itself", PATIENCE_SECONDS)
    more = run.num_blocks - len(before)
    print(f"torchrun: requeued {time.monotonic() - begun:.1f} s after SIGTERM, with {more} more blocks")
    assert run.num_lost == 0
    first = slurm.output(job)
    assert "exitcode  : 75 " in first
    assert not re.search(r"exitcode +: -9|Signal 9|SIGKILL", first), first[-3000:]
    # Once one rank has left, torchrun tells the others to; by then all is published.
    before_torchrun, told, _ = first.partition("told to stop; all finished blocks are kept")
    assert told
    assert "closing signal" not in before_torchrun
    run.order("seconds", "0")
    shown = run.wait_for_end(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert run.outcomes(STAGE) == ["interrupted", "done"]
    assert before.items() <= block_times(run.scores).items()
    scene.require_undisturbed(run)


def test_a_cancelled_job_stays_cancelled(slurm: SlurmCluster, scene: Scene) -> None:
    run = scene.run(slurm, "cancelled")
    run.order("seconds", "1")
    job = run.submit(STAGE)
    run.wait_for_blocks(job, 3)
    slurm.cancel(job)
    assert run.wait_for_end(job)["JobState"] == "CANCELLED"
    published = block_times(run.scores)
    assert not run.is_done(STAGE)
    run.order("seconds", "0")
    again = run.submit(STAGE)  # long enough for the first to come back, if it did
    assert run.wait_for_end(again)["JobState"] == "COMPLETED"
    shown = slurm.show(job)
    assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "0")
    assert run.num_lost <= 1
    assert [(attempt.job, attempt.outcome) for attempt in run.attempts(STAGE)] == [(job, "cancelled"), (again, "done")]
    assert published.items() <= block_times(run.scores).items()
    scene.require_undisturbed(run)


def test_requeued_by_hand_and_a_node_that_crashes(slurm: SlurmCluster, scene: Scene) -> None:
    """Nobody is told anything: the job goes on elsewhere, and takes over what the dead had in hand."""
    run = scene.run(slurm, "crash")
    run.order("seconds", "1")
    job = run.submit(STAGE)
    run.wait_for_blocks(job, 3)
    slurm.requeue(job)
    slurm.wait_for(lambda: slurm.show(job)["Restarts"] == "1", "it is requeued")
    run.wait_for_blocks(job, 3)
    published, lost_node = block_times(run.scores), slurm.show(job)["NodeList"]
    slurm.crash_node(lost_node)
    run.order("seconds", "0")
    shown = run.wait_for_end(job)
    print(f"{lost_node} crashed, {shown['NodeList']} went on; {run.num_lost} blocks computed twice")
    slurm.restore_node(lost_node)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "2")
    assert shown["NodeList"] != lost_node
    assert run.outcomes(STAGE) == ["cancelled", None, "done"]
    assert run.num_lost <= 2
    assert published.items() <= block_times(run.scores).items()
    scene.require_undisturbed(run)


# ---- what cannot be helped by another start


def error_lines(log: str) -> list[str]:
    """The lines of our programs' errors, without time and task."""
    return re.findall(r"^[-0-9]+ [:0-9]+ \d+: (?:\[rank \d+\] )?error: (.*)$", log, re.MULTILINE)


def test_a_model_that_is_not_there_in_a_container(slurm: SlurmCluster, scene: Scene) -> None:
    """In a container, by the flags of Pyxis: an `srun` that stands in front of the real one takes them off."""
    programs = scene.corpus.with_name("container-programs")
    calls = programs / "calls"
    write_program(
        programs / "srun",
        f'printf "%s\\n" "$@" >> {calls}\n'
        'for word in "$@"; do shift; [[ $word == --*container-* ]] || set -- "$@" "$word"; done\n'
        f'exec {program_path("srun")} "$@"\n',
    )
    run = scene.run(slurm, "bad-model", programs=[programs])
    missing = run.directory / "no-checkpoint"
    run.configure(
        TEACHER_MODEL=["--load", missing, "--use-checkpoint-args"],
        environment='CONTAINER_IMAGE="/images/our image.sqsh" CONTAINER_MOUNTS=/a:/b,/c\n'
        "CONTAINER_FLAGS=(--no-container-mount-home)",
    )
    begun = time.monotonic()
    job = run.submit(STAGE)
    shown = run.wait_for_end(job)
    print(f"bad model: over after {time.monotonic() - begun:.0f} s")
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "2:0", "0")
    assert run.outcomes(STAGE) == ["bad-input"]
    (line,) = set(error_lines(slurm.output(job)))
    assert line.startswith(f"{missing} ")
    assert not run.scores.exists()
    assert not run.is_done(STAGE)
    words = calls.read_text().splitlines()
    for flag in (
        "--container-image=/images/our image.sqsh",
        "--container-mounts=/a:/b,/c",
        "--no-container-mount-home",
    ):
        assert words.count(flag) == 1
        assert words.index(flag) < words.index("bash")


def test_a_store_of_another_identity(slurm: SlurmCluster, scene: Scene) -> None:
    run = scene.run(slurm, "another-identity", SCORING_TEACHER="--mask-eod")
    run.begin(scene.undisturbed)
    before = directory_bytes(run.scores)
    job = run.submit(STAGE)
    shown = run.wait_for_end(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "2:0", "0")
    assert run.outcomes(STAGE) == ["bad-input"]
    (line,) = error_lines(slurm.output(job))
    assert line.startswith(f"{run.scores} ")
    assert line.endswith("give another --miniplm-scores directory, or delete this one")
    assert directory_bytes(run.scores) == before


def test_a_crash_is_retried_as_often_as_is_said(slurm: SlurmCluster, scene: Scene) -> None:
    """Starts that end in a crash before any block; then one that ends well, as a new job."""
    run = scene.run(slurm, "crashes")
    run.configure(environment="MAX_FAILURES=2")
    run.order("die")
    job = run.submit(STAGE)
    shown = run.wait_for_end(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "1:0", "1")
    assert run.outcomes(STAGE) == ["failed", "failed"]
    assert (run.num_blocks, run.num_lost) == (0, 2)
    assert "not started again: 2 failures and 0 interruptions in a row without progress" in slurm.output(job)
    run.withdraw("die")
    assert run.wait_for_end(run.submit(STAGE))["JobState"] == "COMPLETED"
    assert run.outcomes(STAGE) == ["failed", "failed", "done"]
    scene.require_undisturbed(run)


def test_a_full_disk(slurm: SlurmCluster, scene: Scene) -> None:
    """Played by a limit on the size of files; the log is written by Slurm, which has room."""
    run = scene.run(slurm, "full")
    run.begin(scene.undisturbed)
    times = block_times(run.scores)
    run.configure(environment=f"COMMAND_PREFIX=(prlimit --fsize={DISK_BYTES})")
    job = run.submit(STAGE)
    shown = run.wait_for_end(job)
    assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("FAILED", "2:0", "0")
    assert run.outcomes(STAGE) == ["bad-input"]
    (line,) = error_lines(slurm.output(job))
    assert re.fullmatch(rf"{run.scores}/blocks/\d+\.npy cannot be used: File too large", line)
    assert block_times(run.scores) == times
    assert litter(run.scores) == []
    run.configure(environment="")
    assert run.wait_for_end(run.submit(STAGE))["JobState"] == "COMPLETED"
    assert times.items() <= block_times(run.scores).items()
    scene.require_undisturbed(run)


# ---- several jobs


def test_two_jobs_on_one_node_share_a_store(slurm: SlurmCluster, scene: Scene) -> None:
    run = scene.run(slurm, "array", JOBS_SCORING="2")
    run.configure(environment="SBATCH_FLAGS=(--nodelist=node1)")
    run.order("seconds", "1")
    job = run.submit(STAGE)
    tasks = [f"{job}_0", f"{job}_1"]
    claimants: set[str | None] = set()

    def both_have_claimed() -> bool:
        if (run.scores / CLAIMS).exists():
            claimants.update(holder.owner.job for holder in in_flight(run.scores) if holder.owner is not None)
        return claimants == set(tasks)

    slurm.wait_for(both_have_claimed, "both jobs score", PATIENCE_SECONDS)
    run.order("seconds", "0")
    for task in tasks:
        shown = run.wait_for_end(task)
        assert (shown["JobState"], shown["ExitCode"], shown["Restarts"]) == ("COMPLETED", "0:0", "0")
        assert shown["NodeList"] == "node1"
    assert run.outcomes(f"{STAGE}.0") == run.outcomes(f"{STAGE}.1") == ["done"]
    scene.require_undisturbed(run)
