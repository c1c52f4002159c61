"""What SLURM has of a pipeline: one call of squeue, which may fail without harm."""

import os
import re
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from megatron_miniplm.slurm.records import Attempt, Outcome, Pipeline, Stage

TIMEOUT_SECONDS = 8.0
#: Base job, array index, job, state, expected or actual start, nodes, name, reason. A type without a size is never cut
#: short; the reason comes last, because it is free text.
_FORMAT = "%F|%K|%A|%T|%S|%N|%j|%r"


@dataclass(frozen=True, kw_only=True)
class QueuedJob:
    """A job, or a task of an array, that has not ended.

    Attributes:
        job: as squeue shows it, such as `17` or `17_3`.
        array_job: `17` of both.
        job_id: what SLURM counts by; pending tasks of an array share one.
        task: index in the array; None of a job that is none.
        state: SLURM's word, such as `PENDING`.
        start: expected or actual, local time in ISO format; None if SLURM does not know it.
        reason: SLURM's word for why it waits, such as `Priority`.
    """

    job: str
    array_job: str
    job_id: int
    task: int | None
    name: str
    state: str
    reason: str
    start: str | None
    nodes: str | None


@dataclass(frozen=True, kw_only=True)
class Queue:
    """Jobs of the pipeline by name.

    Attributes:
        error: why squeue could not be asked; nothing is known then.
    """

    jobs: dict[str, dict[int | None, list[QueuedJob]]] = field(default_factory=dict)
    error: str | None = None

    @property
    def is_known(self) -> bool:
        return self.error is None

    def jobs_of(self, name: str, stage: Stage, task: int | None) -> list[QueuedJob]:
        """Jobs of a stage or of a task of its array."""
        by_task = self.jobs.get(name, {})
        if stage.tasks:
            return by_task.get(task, [])
        return [job for jobs in by_task.values() for job in jobs]


def ask_squeue(pipeline: Pipeline, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Queue:
    """The pipeline's jobs of this user, by one squeue.

    squeue selects by user and name, so that other jobs are not printed; `--array` prints a line for each task, some 100
    bytes. By number, as `--me` is younger than some clusters and the name of a user may be unknown in a container.
    """
    names = [pipeline.job_name(stage) for stage in pipeline.stages]
    command = ["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--name={','.join(names)}", "-o", _FORMAT]
    # Variables of squeue would change what is listed.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=timeout_seconds,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        return Queue(error="there is no squeue on this machine")
    except subprocess.TimeoutExpired:
        return Queue(error=f"squeue gave no answer in {timeout_seconds:g} s")
    except OSError as error:
        return Queue(error=f"squeue cannot be run: {error.strerror or error}")
    if answer.returncode:
        said = answer.stderr.strip().splitlines() or ["it said nothing"]
        return Queue(
            error=f"squeue ended with exit code {answer.returncode}: {said[-1].removeprefix('squeue: ').strip()}"
        )
    return Queue(jobs=_by_name(parse_jobs(answer.stdout), frozenset(names)))


def parse_jobs(text: str) -> list[QueuedJob]:
    """Jobs of squeue's output; lines of another kind, such as the name of a cluster, are left out."""
    jobs = []
    for line in text.splitlines():
        fields = [value.strip() for value in line.split("|", 7)]
        if len(fields) < 8 or not fields[0].isdecimal() or not fields[2].isdecimal():
            continue
        array_job, index, job_id, state, start, nodes, name, reason = fields
        task = int(index) if index.isdecimal() else None
        jobs.append(
            QueuedJob(
                job=array_job if task is None else f"{array_job}_{task}",
                array_job=array_job,
                job_id=int(job_id),
                task=task,
                name=name,
                state=state,
                reason=reason,
                start=start if start[:1].isdecimal() else None,
                nodes=nodes if nodes not in ("", "(null)", "N/A", "None assigned") else None,
            )
        )
    return jobs


def _by_name(jobs: Iterable[QueuedJob], names: frozenset[str]) -> dict[str, dict[int | None, list[QueuedJob]]]:
    by_name: dict[str, dict[int | None, list[QueuedJob]]] = defaultdict(lambda: defaultdict(list))
    for job in jobs:
        if job.name in names:
            by_name[job.name][job.task].append(job)
    return by_name


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
