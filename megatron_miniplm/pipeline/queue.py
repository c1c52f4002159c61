"""What SLURM has of a pipeline: one call of squeue, which may fail without harm."""

import os
import subprocess
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_miniplm.pipeline.records import Pipeline, Stage

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
