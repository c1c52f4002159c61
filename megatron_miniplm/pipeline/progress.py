"""How far a stage is, and when it will be done: from logs, checkpoints, blocks of scores or finished tasks."""

from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.errors import MiniPLMError, unusable_path
from megatron_miniplm.pipeline.logs import tail_lines, training_of
from megatron_miniplm.pipeline.records import Stage

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
    from megatron_miniplm.commands.scores_speed import recent_speed

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
