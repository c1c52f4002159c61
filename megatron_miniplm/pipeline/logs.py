"""The end of a job's log: how far a training is, how fast it goes, and what went wrong. Logs are big: only the tail."""

import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 64 * 1024
#: Logged intervals that tell the speed of a training.
_MAX_INTERVALS = 20

#: Megatron's training_log (megatron/training/training.py), wherever a prefix ends.
_ITERATION = re.compile(r"\biteration\s+(\d+)/\s*(\d+)\s*\|")
_ELAPSED = re.compile(r"elapsed time per iteration \(ms\):\s*(\d+(?:\.\d+)?)")
#: Time and task before a line (`srun --label`), rank (torchrun).
_PREFIX = re.compile(r"(?:\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d\s+)?(?:\s*\d+:\s)?(?:\[\w+\]:\s?)?")
_EXCEPTION = re.compile(r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Failure)(?::\s.*|:?\s*)")
#: What launchers say after the error that matters.
_CONSEQUENCE = re.compile(
    r"srun: error: \S+: tasks? |ChildFailedError|^traceback : |error: \*\*\* \w+ \S+ ON \S+ CANCELLED AT \S+ \*"
)
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class TrainingLog:
    """The last logged iteration, of how many, and the median time of the last logged ones."""

    iteration: int
    num_iterations: int
    iteration_seconds: float | None


def tail_lines(path: Path) -> list[str]:
    """Whole lines of the last TAIL_BYTES, without control characters; none where the log cannot be read."""
    try:
        with open(path, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - TAIL_BYTES))
            text = stream.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = [_CONTROL.sub("", line).rstrip() for line in re.split(r"[\r\n]+", text)]
    return lines[1:] if size > TAIL_BYTES else lines


def training_of(lines: list[str]) -> TrainingLog | None:
    """How far a training is by its log; None before its first logged iteration.

    The speed is a median, so that neither the first interval, which compiles, nor one with a checkpoint tells it.
    """
    logged = [(match, line) for line in lines if (match := _ITERATION.search(line))]
    if not logged:
        return None
    elapsed = [float(match[1]) for _, line in logged[-_MAX_INTERVALS:] if (match := _ELAPSED.search(line))]
    iteration, num_iterations = map(int, logged[-1][0].groups())
    return TrainingLog(
        iteration=iteration,
        num_iterations=num_iterations,
        iteration_seconds=statistics.median(elapsed) / 1000 if elapsed else None,
    )


def last_error(lines: list[str]) -> str | None:
    """The last line that names an error or a Python exception, without time and rank.

    What launchers say of an error that they have seen counts only where there is no other.
    """
    consequence = None
    for line in reversed(lines):
        said = line[_PREFIX.match(line).end() :].strip()  # type: ignore[union-attr]  # it matches the empty string
        if "error:" in said.lower() or _EXCEPTION.fullmatch(said):
            if not _CONSEQUENCE.search(said):
                return said
            consequence = consequence or said
    return consequence
