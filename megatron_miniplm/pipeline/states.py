"""What state a stage or a task of its array is in: a function of its marker, its attempts and its jobs in the queue."""

import re
from collections.abc import Iterable, Sequence
from enum import StrEnum

from megatron_miniplm.pipeline.queue import QueuedJob
from megatron_miniplm.pipeline.records import Attempt, Outcome


class State(StrEnum):
    """In the order in which they name a whole array: what moves first, then what needs a hand."""

    RUNNING = "running"
    UNKNOWN = "unknown"  # it has started; without squeue nobody knows whether it lives
    REQUEUED = "requeued"
    QUEUED = "queued"
    FAILED = "failed"
    ON_HOLD = "on hold"  # by its user, an administrator or SLURM: it waits to be released
    HELD_BACK = "held back"  # what it needs did not end well: it will never run
    WAITING = "waiting"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"  # and no job is left that would go on
    STALE = "stale"
    NOT_SUBMITTED = "not submitted"
    NOT_STARTED = "not started"  # without squeue nobody knows whether it was submitted
    DONE = "done"


#: Of a job without nodes; one that squeue lists in any other state has them.
_PENDING = frozenset(["PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"])
_ENDING = "COMPLETING"
_NEVER = "DependencyNeverSatisfied"
#: Such as the reasons `JobHeldUser` and `launch failed requeued held`, and the state `REQUEUE_HOLD`.
_HELD = re.compile("held|hold", re.IGNORECASE)
_REPEATED = frozenset({Outcome.INTERRUPTED, Outcome.FAILED, Outcome.CANCELLED})
#: How an attempt that ended leaves its unit, where no job is left in the queue.
_ENDED = {
    Outcome.BAD_INPUT: State.FAILED,
    Outcome.FAILED: State.FAILED,
    Outcome.INTERRUPTED: State.INTERRUPTED,
    Outcome.CANCELLED: State.CANCELLED,
}


def unit_state(
    *,
    key: str,
    marker: str | None,
    shares_marker: bool,
    attempts: Sequence[Attempt],
    job: QueuedJob | None,
    queue_is_known: bool,
    lacks_needs: bool = False,
) -> State:
    """The state of a stage, or of a task of its array.

    squeue must have been asked before the attempts were read: a job that ends in between is seen as running, where the
    other order would take it for killed.

    Args:
        attempts: the oldest first.
        job: the one that matters, see `liveliest`.
        lacks_needs: a stage that it needs is not done; SLURM says so of a job only after it has looked at it.
    """
    if marker == key:
        return State.DONE
    newest = attempts[-1] if attempts else None
    if job is not None and not (job.state == _ENDING and newest is not None and newest.outcome):
        return _state_in_queue(job, attempts, lacks_needs)
    if job is not None and newest is not None and newest.outcome in _REPEATED:
        return State.REQUEUED  # squeue does not tell whether a job that ends is one that starts again
    if newest is None:
        if marker is not None:
            return State.STALE
        return State.NOT_SUBMITTED if queue_is_known else State.NOT_STARTED
    if newest.outcome is None:
        return State.FAILED if queue_is_known else State.UNKNOWN
    if newest.outcome is not Outcome.DONE:
        return _ENDED[newest.outcome]
    if marker is not None:
        return State.STALE
    if shares_marker:
        return State.DONE
    return State.NOT_SUBMITTED if queue_is_known else State.NOT_STARTED  # its marker was removed, to do it again


def liveliest(jobs: Iterable[QueuedJob]) -> QueuedJob | None:
    """The job that counts where a stage was submitted twice: one that runs, one that will, the last submitted."""
    return max(jobs, key=lambda job: (job.state not in _PENDING, job.reason != _NEVER, job.job_id), default=None)


def array_state(states: Iterable[State]) -> State:
    """The state of a whole array."""
    found = set(states)
    return next((state for state in State if state in found), State.DONE)


def num_interruptions(attempts: Sequence[Attempt], state: State) -> int:
    """Attempts that were cut short and followed by another, or will be.

    Killed ones and those of lost nodes, which could not say that they ended, are among them.
    """
    past = attempts if state is State.REQUEUED else attempts[:-1]
    cut_short = sum(attempt.outcome in (None, Outcome.CANCELLED, Outcome.INTERRUPTED) for attempt in past)
    return cut_short + sum(attempt.outcome is Outcome.INTERRUPTED for attempt in attempts[len(past) :])


def _state_in_queue(job: QueuedJob, attempts: Sequence[Attempt], lacks_needs: bool) -> State:
    if job.state not in _PENDING:
        return State.RUNNING
    if job.reason == _NEVER:
        return State.HELD_BACK
    if _HELD.search(f"{job.state} {job.reason}"):
        return State.ON_HOLD
    if job.reason == "Dependency":
        return State.WAITING
    has_run = any(attempt.job_id == job.job_id or attempt.job == job.job for attempt in attempts)
    if has_run:
        return State.REQUEUED
    return State.WAITING if lacks_needs else State.QUEUED
