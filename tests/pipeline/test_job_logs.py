"""The tail of a log: Megatron's lines, errors, and what is neither."""

from pathlib import Path

import pytest

from megatron_miniplm.pipeline.logs import TAIL_BYTES, TrainingLog, last_error, tail_lines, training_of

LINE = (
    " [2026-11-23 06:00:00] iteration {:8d}/{:8d} | consumed samples:          800 | "
    "elapsed time per iteration (ms): {:.1f} | learning rate: 1.0E-03 | global batch size:    16 |"
)


def test_training() -> None:
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
