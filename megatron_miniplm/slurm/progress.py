"""How far a stage is, and when it will be done: from logs, checkpoints, blocks of scores or finished tasks."""

import os
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.leases import server_time_ns
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import MiniPLMError, unusable_path
from megatron_miniplm.slurm.records import Stage

_TRACKER = "latest_checkpointed_iteration.txt"


@dataclass(frozen=True, kw_only=True)
class StageProgress:
    """How far a stage is.

    Attributes:
        unit: what is counted: `iterations`, `blocks` or `tasks`.
        seconds_left: at the speed of late, of all its jobs together; None where it is not known.
        trouble: why more is not known.
    """

    unit: str
    num_done: int
    total: int | None
    seconds_left: float | None = None
    trouble: str | None = None


def training_progress(stage: Stage, log_path: Path | None) -> StageProgress | None:
    """Iterations by the log of the newest attempt, or by the latest checkpoint where that is further.

    Returns:
        None before the first logged iteration.
    """
    log = training_of(tail_lines(log_path)) if log_path else None
    saved = _checkpointed_iteration(stage.output)
    if log is None and saved is None:
        return None
    num_done = max(saved or 0, log.iteration if log else 0)
    total = stage.total if stage.total is not None else log.num_iterations if log else None
    seconds_left = None
    if log is not None and log.iteration_seconds is not None and total is not None:
        seconds_left = max(0, total - num_done) * log.iteration_seconds
    return StageProgress(unit="iterations", num_done=num_done, total=total, seconds_left=seconds_left)


def scoring_progress(stage: Stage, *, may_run: bool) -> StageProgress | None:
    """Blocks by one listing of the directory; the speed, while processes beat, by the blocks of the last minutes.

    Args:
        may_run: look for processes that score, which costs one more listing.

    Returns:
        None before the first job has started the store.
    """
    if not stage.output.is_dir():
        return None
    # NumPy is for this kind only, a tenth of a second.
    from megatron_miniplm.artifacts.leases import in_flight
    from megatron_miniplm.artifacts.scores import ScoreStore, is_score_store

    if not is_score_store(stage.output):
        return None
    num_done, total, seconds_left, trouble = 0, None, None, None
    try:
        store = ScoreStore.open(stage.output)
        total = store.plan.num_blocks
        missing = store.missing_blocks()
        num_done = total - len(missing)
        working = may_run and missing and any(holder.alive for holder in in_flight(store.directory))
        if working and (speed := recent_speed(store)) is not None:
            seconds_left = sum(len(store.plan.sequences(block)) for block in missing) / speed.sequences_per_second
    except MiniPLMError as error:
        trouble = str(error)
    except OSError as error:  # a store that is started anew right now, a file server that is away
        trouble = str(unusable_path(error))
    return StageProgress(unit="blocks", num_done=num_done, total=total, seconds_left=seconds_left, trouble=trouble)


def _checkpointed_iteration(directory: Path) -> int | None:
    """Megatron's own tracker; None without one, or where it says `release`."""
    try:
        text = (directory / _TRACKER).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


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


#: Blocks that tell the speed: the newest ones, of the last minutes before the newest.
_MAX_BLOCKS = 256
_WINDOW_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of all processes together, over the last blocks."""

    tokens_per_second: float
    sequences_per_second: float


def recent_speed(store: ScoreStore, now_ns: int | None = None) -> Speed | None:
    """Speed since the publication of the oldest block that counts, without that block; None with less than two.

    Args:
        now_ns: by the clock that stamps the blocks' files; by default of their file server.

    Raises:
        CorruptArtifactError: one of these blocks is damaged.
    """
    if now_ns is None:
        now_ns = server_time_ns(store.directory)
    times = []
    for block in store.published_blocks():
        times.append((os.stat(store.block_path(block)).st_mtime_ns, block))
    newest = sorted(times)[-_MAX_BLOCKS:]
    newest = [(time_ns, block) for time_ns, block in newest if newest[-1][0] - time_ns <= _WINDOW_SECONDS * 1e9]
    if len(newest) < 2 or (span_seconds := (now_ns - newest[0][0]) / 1e9) <= 0:
        return None
    num_tokens = num_sequences = 0
    for _, block in newest[1:]:
        scores = store.read_block(block)
        num_tokens += int(scores["num_tokens"].sum(where=scores["num_tokens"] != NOT_SCORED, dtype=np.int64))
        num_sequences += len(scores)
    return Speed(tokens_per_second=num_tokens / span_seconds, sequences_per_second=num_sequences / span_seconds)
