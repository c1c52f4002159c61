"""Twenty kills of ranks, launchers and whole jobs that share a store: it ends as if nothing had happened.

Two jobs at a time, in worlds that change from round to round. Ten kills among runs whose rows are the same (one rank,
two replicas) leave the bytes of an undisturbed run, ten among runs of any layout leave its scores.
"""

import os
import random
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import TinyRun, directory_bytes, random_sequences, run, score_command, write_corpus
from scoring_jobs import Job, block_times, litter

from megatron_miniplm.artifacts.leases import EXPIRY_SECONDS, in_flight
from megatron_miniplm.artifacts.scores import ScoreStore

pytestmark = pytest.mark.slow

NUM_SEQUENCES, SEQUENCE_TOKENS, BLOCK_SEQUENCES = 7200, 100, 40  # some 25 seconds of work in 180 blocks
LAYOUT_TOLERANCE_NATS = 1e-5  # a token; float32 sums in another order
MOST_BLOCKS_BEFORE_A_KILL = 3
#: Some two blocks' work: a kill must not always fall into the moment after a publication.
MOST_SECONDS_BEFORE_A_KILL = 0.4

#: Name -> processes and flags. Two jobs with three processes in all make a round.
WORLDS = {
    "one": (1, ""),
    "dp2": (2, ""),
    "tp2": (2, "--tensor-model-parallel-size 2 --micro-batch-size 5"),
    "pp2": (2, "--pipeline-model-parallel-size 2"),
}
#: Of the jobs under torchrun, in any order; a single process can only be killed whole.
VICTIMS = ["rank", "rank", "rank", "launcher", "job"]
ROUNDS = {"same layout": ["dp2"] * 5, "any layout": ["tp2", "pp2", "dp2", "tp2", "pp2"]}


@dataclass
class Tally:
    """What happened to one store."""

    num_kills: int = 0
    orphaned: set[int] = field(default_factory=set)
    published: dict[str, int] = field(default_factory=dict)

    def look(self, directory: Path) -> None:
        """After a kill: what is visible is whole, and has not been written again."""
        store = ScoreStore.open(directory)
        now = block_times(directory)
        assert self.published.items() <= now.items(), "a finished block was written again"
        assert store.verify() == {}
        self.published = now
        self.orphaned |= {holder.block for holder in in_flight(directory) if not holder.alive}


class Scene:
    """A model and a corpus, and the stores of runs over them."""

    def __init__(self, tiny: TinyRun, directory: Path) -> None:
        self._checkpoint = tiny.checkpoint
        self._directory = directory
        self._corpus = write_corpus(directory / "large", random_sequences([SEQUENCE_TOKENS] * NUM_SEQUENCES))
        self.undisturbed = directory / "undisturbed"
        self.finish(self.undisturbed)

    def command(self, directory: Path, world: str) -> list[str]:
        num_processes, flags = WORLDS[world]
        flags = f"--use-checkpoint-args --block-sequences {BLOCK_SEQUENCES} {flags}"
        prefixes = [self._corpus.prefix]
        return score_command(self._checkpoint, prefixes, directory, *flags.split(), num_processes=num_processes)

    def start(self, directory: Path, world: str) -> Job:
        return Job(self.command(directory, world), directory, WORLDS[world][0])

    def finish(self, directory: Path) -> float:
        """One job that nobody disturbs; returns its seconds."""
        started = time.monotonic()
        process = run(self.command(directory, "one"))
        assert process.returncode == 0, process.stderr[-4000:]
        return time.monotonic() - started

    def torment(self, name: str, rng: random.Random) -> Tally:
        """Kill two jobs in each round of `ROUNDS[name]`; ends with blocks that nobody has scored yet."""
        directory = self._directory / name.replace(" ", "-")
        tally = Tally()
        for world, victim in zip(ROUNDS[name], rng.sample(VICTIMS, len(VICTIMS)), strict=True):
            with ExitStack() as stack:
                jobs = [(stack.enter_context(self.start(directory, world)), victim)]
                jobs.append((stack.enter_context(self.start(directory, "one")), "job"))
                for job, its_victim in rng.sample(jobs, 2):
                    job.wait_for_blocks(rng.randint(1, MOST_BLOCKS_BEFORE_A_KILL))
                    time.sleep(rng.uniform(0, MOST_SECONDS_BEFORE_A_KILL))
                    kill(job, its_victim, rng)
                    tally.num_kills += 1
                    tally.look(directory)
        assert ScoreStore.open(directory).missing_blocks(), "the store is full: make the corpus larger"
        return tally


def kill(job: Job, victim: str, rng: random.Random) -> None:
    """`kill -9` of one rank, of the launcher, or of all; ends when no process is left."""
    started = time.monotonic()
    if victim == "rank":
        job.send(signal.SIGKILL, rank=rng.randrange(len(job.ranks)))
    elif victim == "launcher":
        job.send_to_launcher(signal.SIGKILL)
    else:
        job.send(signal.SIGKILL)
    job.wait()
    print(f"  killed a {victim}; everything was gone after {time.monotonic() - started:.1f} s")


@pytest.fixture(scope="module")
def scene(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tiny, tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize("name", ROUNDS)
def test_ten_kills(scene: Scene, name: str) -> None:
    seed = int(os.environ.get("MINIPLM_CHAOS_SEED", "0"))
    tally = scene.torment(name, random.Random(f"{name} {seed}"))
    directory = scene.undisturbed.with_name(name.replace(" ", "-"))
    seconds = scene.finish(directory)
    store, undisturbed = ScoreStore.open(directory), ScoreStore.open(scene.undisturbed)
    print(
        f"{name}: {tally.num_kills} kills, {len(tally.orphaned)} blocks taken over from the dead, "
        f"{len(tally.published)} of {store.plan.num_blocks} blocks by killed jobs, the last job took {seconds:.0f} s"
    )
    assert tally.num_kills == 10
    assert tally.orphaned, "no kill met a job in the middle of a block"
    assert seconds < EXPIRY_SECONDS, "the last job waited for the dead"
    assert tally.published.items() <= block_times(directory).items(), "a finished block was written again"
    store.require_complete()
    assert store.verify() == {}
    assert litter(directory) == []
    if name == "same layout":
        assert directory_bytes(directory) == directory_bytes(scene.undisturbed)
    scores, expected = store.read_all(), undisturbed.read_all()
    assert np.array_equal(scores["num_tokens"], expected["num_tokens"])
    difference = np.abs(scores["nll"].astype("f8") - expected["nll"]) / np.maximum(expected["num_tokens"], 1)
    assert difference.max() < LAYOUT_TOLERANCE_NATS
    if name == "any layout":
        assert difference.max() > 0, "all rows were computed alike: the layouts had no part"
