"""A scoring run that is killed, then told to stop, then left alone ends with the bytes of an undisturbed one."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_runs import TinyRun, directory_bytes, error_lines, random_sequences, run, score_command, write_corpus
from scoring_jobs import Job, block_times, litter

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.indexed import IndexedCorpus

pytestmark = pytest.mark.slow

NUM_SEQUENCES = 6000  # of 100 tokens: some 10 seconds of work in 120 blocks
FEWER_SEQUENCES = 3000
STOPPED = "error: told to stop; all finished blocks are kept, the same command continues"
#: A rank ends its pass first, and torchrun gives ranks that do not stop 30 seconds.
STOP_SECONDS = 20


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> IndexedCorpus:
    return write_corpus(tmp_path_factory.mktemp("recovery") / "large", random_sequences([100] * NUM_SEQUENCES))


def command(tiny: TinyRun, corpus: IndexedCorpus, directory: Path, num_processes: int = 1) -> list[str]:
    flags = ["--use-checkpoint-args"]
    return score_command(tiny.checkpoint, [corpus.prefix], directory, *flags, num_processes=num_processes)


def interrupt(command: list[str], directory: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run and signal it once it has published two more blocks.

    Returns:
        Its exit code and stderr.
    """
    with Job(command, directory) as job:
        job.wait_for_blocks(2)
        job.send(number)
        return job.wait(), job.stderr


def test_killed_then_stopped_then_finished(tiny: TinyRun, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", random_sequences([100] * FEWER_SEQUENCES))
    undisturbed, disturbed = corpus.prefix.with_name("undisturbed"), corpus.prefix.with_name("disturbed")
    exit_code, _ = interrupt(command(tiny, corpus, disturbed), disturbed, signal.SIGKILL)
    assert exit_code == -signal.SIGKILL
    store = ScoreStore.open(disturbed)
    survived = [block_times(disturbed)]
    assert 2 <= len(survived[0]) < store.plan.num_blocks
    assert store.verify() == {}  # whatever is visible is whole
    # What a kill in the middle of a write leaves.
    (disturbed / "blocks" / f".{store.block_path(store.missing_blocks()[0]).name}.4194304.tmp").write_bytes(b"half")

    left_by_kill = litter(disturbed)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        exit_code, stderr = interrupt(command(tiny, corpus, disturbed), disturbed, number)
        assert exit_code == 75
        assert error_lines(stderr) == [STOPPED]
        assert set(litter(disturbed)) <= set(left_by_kill), "claims were not given back"
        survived.append(block_times(disturbed))
        assert survived[-2].items() <= survived[-1].items()
        assert len(survived[-2]) < len(survived[-1]) < store.plan.num_blocks

    for directory in (disturbed, undisturbed):
        process = run(command(tiny, corpus, directory))
        assert process.returncode == 0, process.stderr[-4000:]
    assert survived[-1].items() <= block_times(disturbed).items(), "a finished block was written again"
    files = directory_bytes(disturbed)
    assert files == directory_bytes(undisturbed)
    assert {"identity.json", "manifest.json"} < files.keys()
    assert len(files) == store.plan.num_blocks + 3


@pytest.mark.parametrize("is_started", [False, True], ids=["imports", "loads the model"])
def test_a_signal_before_the_first_block(
    tiny: TinyRun, corpus: IndexedCorpus, tmp_path: Path, is_started: bool
) -> None:
    """SLURM does not ask whether there is anything to save."""
    scores = tmp_path / "scores"
    with Job(command(tiny, corpus, scores), scores) as job:
        job.wait_for((scores / "identity.json").exists if is_started else lambda: job.catches(signal.SIGUSR1))
        job.send(signal.SIGUSR1)
        assert job.wait(STOP_SECONDS) == 75
        lines = [line for line in job.stderr.splitlines() if line == STOPPED or line.startswith("interrupted; ")]
    interrupted = "interrupted; run the same command again to continue"
    # A tiny model is loaded at once, and the signal may come after that.
    assert lines == [interrupted] or (is_started and lines == [STOPPED])
    assert litter(tmp_path) == []


@pytest.mark.parametrize(
    ("send", "survives"),
    [
        (lambda job: job.send(signal.SIGUSR1, rank=1), True),
        (lambda job: job.send_to_launcher(signal.SIGTERM), True),
        (lambda job: job.send(signal.SIGUSR1), False),
    ],
    ids=["one rank of two", "launcher, which passes it on", "launcher, which dies of it, and ranks"],
)
def test_a_signal_to_two_ranks(
    tiny: TinyRun, corpus: IndexedCorpus, tmp_path: Path, send: Callable[[Job], None], survives: bool
) -> None:
    """A real torchrun, which gets the signals; `survives`: its own process, whose store the ranks talk through."""
    scores = tmp_path / "scores"
    with Job(command(tiny, corpus, scores, num_processes=2), scores, 2, by_torchrun=True) as job:
        job.wait_for_blocks(2)
        before = block_times(scores)
        send(job)
        exit_code = job.wait(STOP_SECONDS)
        lines = [line for line in job.stderr.splitlines() if line.startswith("error: ")]
        if survives:
            assert exit_code > 0
            assert lines == [STOPPED], job.stderr[-3000:]
        else:
            assert exit_code == -signal.SIGUSR1
    store = ScoreStore.open(scores)
    assert before.items() <= block_times(scores).items()
    assert store.missing_blocks()
    assert store.verify() == {}
    assert litter(scores) == [], "claims were not given back"
