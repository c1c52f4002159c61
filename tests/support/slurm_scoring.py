"""Scoring as jobs of `slurm/score.sbatch`, over a store of many small blocks, and what is seen of it."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from megatron_runs import DATA_FLAGS, directory_bytes, random_sequences, write_corpus
from scoring_jobs import block_times, litter
from slurm_cluster import SlurmCluster
from slurm_jobs import PipelineRun, write_order, write_program

from megatron_miniplm.artifacts.leases import CLAIMS, in_flight
from megatron_miniplm.artifacts.scores import ScoreStore

STAGE = "score-teacher"
BLOCK_SEQUENCES, NUM_BLOCKS, SEQUENCE_TOKENS = 24, 110, 15
#: For starts of torch and Megatron on a machine that is busy with other tests.
PATIENCE_SECONDS = 600
PACED_SCORING = Path(__file__).with_name("paced_scoring.py")


class ScoringRun(PipelineRun):
    """Scores of the teacher over a corpus of `NUM_BLOCKS` blocks, one rank a node."""

    def __init__(
        self,
        slurm: SlurmCluster,
        directory: Path,
        checkpoint: Path,
        corpus: Path,
        *,
        environment: str = "",
        **settings: str,
    ) -> None:
        flags = [*DATA_FLAGS, "--micro-batch-size", "8", "--block-sequences", str(BLOCK_SEQUENCES)]
        model = ["--load", checkpoint, "--use-checkpoint-args"]
        configuration = {
            "CORPUS": [corpus],
            "TOKENIZER": ["--tokenizer-type", "NullTokenizer"],
            "TEACHER_MODEL": model,
            "REFERENCE_MODEL": model,
            "SCORING": flags,
            "RANKS_SCORING": "1",
            "TIME_SCORING": "30",
            **settings,
        }
        super().__init__(slurm, directory, configuration, environment=environment, programs=[directory / "programs"])
        self._orders = directory / "orders"
        self._orders.mkdir()
        write_program(
            directory / "programs" / "miniplm",
            f'MINIPLM_TEST_ORDERS="{self._orders}" exec "{sys.executable}" "{PACED_SCORING}" "$@"\n',
        )

    @property
    def scores(self) -> Path:
        return self.directory / "scores" / "teacher"

    def read_all(self) -> np.ndarray:
        return ScoreStore.open(self.scores).read_all()

    @property
    def num_blocks(self) -> int:
        return len(block_times(self.scores))

    def order_seconds(self, seconds: float) -> None:
        """How long the publication of a block takes, in running and future ranks; see paced_scoring.py."""
        write_order(self._orders / "seconds", str(seconds))

    def wait_for_blocks(self, job: str, num_blocks: int) -> None:
        """Wait until a job that is running has published this many more."""
        self.slurm.wait(job, "RUNNING", timeout_seconds=PATIENCE_SECONDS)
        enough = self.num_blocks + num_blocks
        assert enough < NUM_BLOCKS, "the store is full too early: make the corpus larger"
        self.slurm.wait_for(lambda: self.num_blocks >= enough, f"{enough} blocks", PATIENCE_SECONDS)

    def wait_for_end(self, job: str) -> dict[str, str]:
        """Wait until a job has ended, well or not; returns what SLURM shows of it."""
        self.slurm.wait(job, timeout_seconds=PATIENCE_SECONDS)
        return self.slurm.show(job)

    @property
    def num_lost(self) -> int:
        """Blocks that a rank began to work on and did not publish, while no rank works."""
        begun = [int(line) for line in (self._orders / "begun").read_text().splitlines()]
        return len(begun) - self.num_blocks

    def require_equal(self, undisturbed: Path) -> None:
        """The store is complete and has the bytes of an undisturbed one."""
        ScoreStore.open(self.scores).require_complete()
        assert litter(self.scores) == []
        assert directory_bytes(self.scores) == directory_bytes(undisturbed)
        assert self.is_done(STAGE)


@dataclass(frozen=True, kw_only=True)
class SharedStore:
    """A store that two jobs of an array have scored together on one node, and that nobody has disturbed.

    Attributes:
        tasks: the jobs.
        claimants: those jobs that have claimed blocks of it.
    """

    run: ScoringRun
    checkpoint: Path
    corpus: Path
    tasks: tuple[str, str]
    claimants: frozenset[str | None]


def score_by_two_jobs(slurm: SlurmCluster, directory: Path, checkpoint: Path) -> SharedStore:
    corpus = directory / "corpus"
    write_corpus(corpus, random_sequences([SEQUENCE_TOKENS] * (NUM_BLOCKS * BLOCK_SEQUENCES)))
    flags = "SBATCH_FLAGS=(--nodelist=node1)"
    run = ScoringRun(slurm, directory / "run", checkpoint, corpus, environment=flags, JOBS_SCORING="2")
    run.order_seconds(1)
    array = run.submit(STAGE)
    tasks = f"{array}_0", f"{array}_1"
    claimants: set[str | None] = set()

    def both_have_claimed() -> bool:
        if (run.scores / CLAIMS).exists():
            claimants.update(holder.owner.job for holder in in_flight(run.scores) if holder.owner is not None)
        return claimants == set(tasks)

    slurm.wait_for(both_have_claimed, "both jobs score", PATIENCE_SECONDS)
    run.order_seconds(0)
    for task in tasks:
        run.wait_for_end(task)
    return SharedStore(run=run, checkpoint=checkpoint, corpus=corpus, tasks=tasks, claimants=frozenset(claimants))
