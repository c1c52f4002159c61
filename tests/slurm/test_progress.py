"""How far training and scoring are, from what they leave on disk."""

import os
from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import identity_of

from megatron_miniplm.artifacts.leases import Leases, server_time_ns
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.slurm.progress import (
    TAIL_BYTES,
    StageProgress,
    TrainingLog,
    last_error,
    scoring_progress,
    tail_lines,
    training_of,
    training_progress,
)
from megatron_miniplm.slurm.records import Stage

LOG = " [2026-11-23 06:00:00] iteration       50/     450 | elapsed time per iteration (ms): 500.0 |\n"


def stage_of(kind: str, output: Path, total: int | None = None) -> Stage:
    return Stage(name="stage", kind=kind, tasks=0, after=(), output=output, total=total, key="3f")


@pytest.fixture
def started(tmp_path: Path) -> ScoreStore:
    """Two of four blocks of one sequence; they were published 40 and 30 seconds ago."""
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]] * 4)
    store = ScoreStore.create_or_resume(tmp_path / "scores", identity_of([corpus], model="s", block_sequences=1))
    for block in range(2):
        store.write_block(block, [1.0], [1])
    now_ns = server_time_ns(store.directory)
    for block, seconds in ((0, 40), (1, 30)):
        os.utime(store.block_path(block), ns=(0, now_ns - seconds * 10**9))
    return store


@pytest.mark.parametrize(
    ("tracker", "log", "num_done", "seconds_left"),
    [(None, LOG, 50, 200), ("100", LOG, 100, 175), ("20", LOG, 50, 200), ("100", "", 100, None)],
)
def test_training(tmp_path: Path, tracker: str | None, log: str, num_done: int, seconds_left: float | None) -> None:
    (tmp_path / "log").write_text(log)
    if tracker:
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(tracker)
    assert training_progress(stage_of("train", tmp_path, 450), tmp_path / "log") == StageProgress(
        unit="iterations", num_done=num_done, total=450, seconds_left=seconds_left
    )


def test_training_that_has_not_begun(tmp_path: Path) -> None:
    stage = stage_of("train", tmp_path / "checkpoint", 450)
    assert training_progress(stage, None) is None
    stage.output.mkdir()
    (stage.output / "latest_checkpointed_iteration.txt").write_text("release\n")
    assert training_progress(stage, tmp_path / "nothing") is None


def test_training_whose_length_only_the_log_knows(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(LOG)
    found = training_progress(stage_of("train", tmp_path), tmp_path / "log")
    assert found == StageProgress(unit="iterations", num_done=50, total=450, seconds_left=200)


def test_scoring(started: ScoreStore) -> None:
    stage = stage_of("score", started.directory)
    assert scoring_progress(stage, may_run=False) == StageProgress(unit="blocks", num_done=2, total=4)
    assert scoring_progress(stage, may_run=True) == StageProgress(unit="blocks", num_done=2, total=4)
    with Leases(started.directory) as leases:
        assert leases.claim(2)
        found = scoring_progress(stage, may_run=True)
    assert found is not None
    assert found.seconds_left == pytest.approx(80, abs=5)  # a block in 40 s


def test_scoring_reads_no_old_block(started: ScoreStore) -> None:
    os.utime(started.block_path(0), (0, 0))
    started.block_path(0).write_bytes(b"damaged")
    os.utime(started.block_path(0), (0, 0))
    with Leases(started.directory) as leases:
        assert leases.claim(2)
        found = scoring_progress(stage_of("score", started.directory), may_run=True)
    assert found == StageProgress(unit="blocks", num_done=2, total=4)


def test_scores_that_are_damaged(started: ScoreStore) -> None:
    (started.directory / "identity.json").write_text("{")
    found = scoring_progress(stage_of("score", started.directory), may_run=True)
    assert found is not None
    assert found.trouble is not None
    assert "identity.json is not a valid identity of scores" in found.trouble


def test_scoring_that_has_not_begun(tmp_path: Path) -> None:
    assert scoring_progress(stage_of("score", tmp_path / "nothing"), may_run=True) is None
    assert scoring_progress(stage_of("score", tmp_path), may_run=True) is None


LINE = (
    " [2026-11-23 06:00:00] iteration {:8d}/{:8d} | consumed samples:          800 | "
    "elapsed time per iteration (ms): {:.1f} | learning rate: 1.0E-03 | global batch size:    16 |"
)


def test_training_log() -> None:
    lines = [LINE.format(50, 450, 9000.0), "saving", "2026-11-23 06:00:00 3: " + LINE.format(100, 450, 338.4)]
    lines.append("2026-11-23 06:00:00 00: " + LINE.format(150, 450, 340.4))
    assert training_of(lines) == TrainingLog(iteration=150, num_iterations=450, iteration_seconds=pytest.approx(0.3404))


def test_before_the_first_iteration() -> None:
    assert training_of([]) is None
    assert training_of(["building the model", "iteration 5 of many"]) is None


def test_without_times() -> None:
    found = training_of(["iteration 5/ 9 | lm loss: 1"])
    assert found == TrainingLog(iteration=5, num_iterations=9, iteration_seconds=None)


def test_only_whole_lines_of_the_tail(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n" + b"x" * TAIL_BYTES + b"\nbar 1%\rbar 2%\n\x1b[31mred\x1b[0m\x07 \xff\n")
    assert tail_lines(log) == ["bar 1%", "bar 2%", "red �", ""]
    log.write_bytes(b"first\nsecond")
    assert tail_lines(log) == ["first", "second"]


@pytest.mark.parametrize("path", ["nothing", "."])
def test_a_log_that_cannot_be_read(tmp_path: Path, path: str) -> None:
    assert tail_lines(tmp_path / path) == []


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (["fine", "iteration 5/ 9 | no errors: 0"], None),
        (["error: a.jsonl has no field", "more"], "error: a.jsonl has no field"),
        (["2026-11-23 06:00:00 0: error: no field"], "error: no field"),
        (["0: error: no field", "0:   traceback : error: no field", "0: ======"], "error: no field"),
        (["2026-11-23 06:00:00 07: [rank7]: ValueError: bad", "  at"], "ValueError: bad"),
        (["torch.cuda.OutOfMemoryError: CUDA out of memory"], "torch.cuda.OutOfMemoryError: CUDA out of memory"),
        (["KeyboardInterrupt"], "KeyboardInterrupt"),
        (["ValueError: first", "KeyError: 'second'"], "KeyError: 'second'"),
        (["    raise ValueError(x)", "raising a ValueError here is fine"], None),
        (
            [
                "error: the cause",
                "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: ",
                "srun: error: node3: task 0: Exited with exit code 2",
                "slurmstepd: error: *** STEP 17.0 ON node3 CANCELLED AT 2026-11-23T06:00:00 ***",
            ],
            "error: the cause",
        ),
        (
            ["srun: error: node3: task 0: Exited with exit code 2"],
            "srun: error: node3: task 0: Exited with exit code 2",
        ),
        (
            ["slurmstepd: error: *** JOB 17 ON node3 CANCELLED AT 2026-11-23T06:00:00 DUE TO TIME LIMIT ***"],
            "slurmstepd: error: *** JOB 17 ON node3 CANCELLED AT 2026-11-23T06:00:00 DUE TO TIME LIMIT ***",
        ),
        (
            ["slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.", "srun: error: node3: task 0: Killed"],
            "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.",
        ),
    ],
)
def test_the_last_error(lines: list[str], error: str | None) -> None:
    assert last_error(lines) == error
