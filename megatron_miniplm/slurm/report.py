"""The report of `miniplm status`: book-keeping, queue, logs and outputs put together, with what to do next."""

import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_miniplm.slurm.progress import (
    StageProgress,
    last_error,
    scoring_progress,
    tail_lines,
    training_progress,
)
from megatron_miniplm.slurm.queue import (
    Queue,
    QueuedJob,
    State,
    array_state,
    ask_squeue,
    liveliest,
    num_interruptions,
    unit_state,
)
from megatron_miniplm.slurm.records import SUBMIT, Attempt, Outcome, Pipeline, Records, Stage, read_pipeline

#: Failed tasks of a stage whose logs are searched for the error.
MAX_ERRORS = 8
#: Small files are read at once: on a shared file system each takes as long as the server does to answer.
_NUM_READERS = 16
_LIVE = frozenset({State.RUNNING, State.UNKNOWN})
#: Nothing is broken, but nothing will happen either.
_UNFINISHED = frozenset({State.HELD_BACK, State.CANCELLED, State.INTERRUPTED, State.STALE, State.NOT_SUBMITTED})


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """A stage that is no array, or a task of one that is.

    Attributes:
        task: index in the array.
        job: in the queue, or else of the newest attempt; as squeue shows it.
        reason: SLURM's, why it is pending.
        expected_start: SLURM's, of a pending job; local time.
        nodes, seconds: where and how long the newest attempt has been running, or ran.
        outcome, exit_code: of the newest attempt; None while it runs, or where it was killed.
        log_silent_seconds: since the log was last written to; of what runs, or may.
        error: last error in the log of an attempt that failed.
        num_failures: attempts that ended with an error, also those that SLURM has repeated.
    """

    task: int | None
    state: State
    job: str | None
    reason: str | None
    expected_start: str | None
    nodes: str | None
    seconds: float | None
    outcome: Outcome | None
    exit_code: int | None
    log: Path | None
    log_silent_seconds: float | None
    error: str | None
    num_attempts: int
    num_interruptions: int
    num_failures: int


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """A stage, its units, and how far it is."""

    stage: Stage
    state: State
    units: tuple[UnitReport, ...]
    progress: StageProgress | None

    @property
    def states(self) -> dict[State, int]:
        """How many units are in which state, in the order of State."""
        counts = Counter(unit.state for unit in self.units)
        return {state: counts[state] for state in State if counts[state]}

    def units_in(self, *states: State) -> list[UnitReport]:
        return [unit for unit in self.units if unit.state in states]


@dataclass(frozen=True, kw_only=True)
class PipelineReport:
    """Everything that `miniplm status` shows.

    Attributes:
        time_seconds: when it was made, since 1970.
        queue_error: why squeue could not be asked.
    """

    run_dir: Path
    tag: str
    time_seconds: float
    queue_error: str | None
    stages: tuple[StageReport, ...]

    @property
    def is_finished(self) -> bool:
        return all(stage.state is State.DONE for stage in self.stages)

    @property
    def states(self) -> dict[State, int]:
        """How many stages are in which state, in the order of State."""
        counts = Counter(stage.state for stage in self.stages)
        return {state: counts[state] for state in State if counts[state]}

    def as_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "tag": self.tag,
            "time_seconds": self.time_seconds,
            "squeue_error": self.queue_error,
            "finished": self.is_finished,
            "states": self.states,
            "next": next_steps(self),
            "stages": [_stage_as_json(stage) for stage in self.stages],
        }


def report_on(run_dir: Path) -> PipelineReport:
    """Look at a run; writes nothing, and does not mind that its jobs write meanwhile.

    Raises:
        InputError: no pipeline was submitted there, or its pipeline.tsv is of another format or damaged.
    """
    pipeline = read_pipeline(run_dir)
    queue = ask_squeue(pipeline)  # before the attempts are read, see `unit_state`
    records = Records(run_dir)
    now_seconds = time.time()
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        look = _Look(pipeline=pipeline, queue=queue, records=records, now_seconds=now_seconds, readers=readers)
        stages: dict[str, StageReport] = {}
        for stage in pipeline.stages:
            needed = [stages[name].state for name in stage.after if name in stages]
            lacks_needs = any(state is not State.DONE for state in needed)
            stages[stage.name] = _report_stage(stage, look, lacks_needs=lacks_needs)
    return PipelineReport(
        run_dir=run_dir,
        tag=pipeline.tag,
        time_seconds=now_seconds,
        queue_error=queue.error,
        stages=tuple(stages.values()),
    )


def next_steps(report: PipelineReport) -> list[str]:
    """What somebody should do now, the most urgent first; one sentence each."""
    if report.is_finished:
        return ["nothing: all stages are done"]
    units = [unit for stage in report.stages for unit in stage.units]
    found = {unit.state for unit in units}
    steps = []
    if State.ON_HOLD in found:
        jobs = list(dict.fromkeys(unit.job or "" for unit in units if unit.state is State.ON_HOLD))
        more = f" (and {len(jobs) - 1} more)" if len(jobs) > 1 else ""
        steps.append(f"release what is on hold: scontrol release {jobs[0]}{more}")
    if State.FAILED in found:
        steps.append(f"fix what is named above, then run {SUBMIT} again: it submits only what is not finished")
    if report.queue_error is not None:
        steps.append("ask again where squeue works: it tells which jobs run, wait or are gone")
    elif State.FAILED not in found and found & _UNFINISHED:
        steps.append(f"run {SUBMIT} again: it submits only what is not finished")
    return steps or ["nothing: stages run or wait for their turn"]


@dataclass(frozen=True, kw_only=True)
class _Look:
    """What all stages are seen by."""

    pipeline: Pipeline
    queue: Queue
    records: Records
    now_seconds: float
    readers: ThreadPoolExecutor


def _report_stage(stage: Stage, look: _Look, *, lacks_needs: bool) -> StageReport:
    name = look.pipeline.job_name(stage)

    def report_unit(task: int | None) -> tuple[UnitReport, Sequence[Attempt]]:
        attempts, marker = look.records.attempts(stage, task), look.records.marker(stage, task)
        job = liveliest(look.queue.jobs_of(name, stage, task))
        state = unit_state(
            key=stage.key,
            marker=marker,
            shares_marker=stage.shares_marker,
            attempts=attempts,
            job=job,
            queue_is_known=look.queue.is_known,
            lacks_needs=lacks_needs,
        )
        return _report_unit(task, state, attempts, job, look.now_seconds), attempts

    found = list(look.readers.map(report_unit, stage.unit_tasks))
    units = [unit for unit, _ in found]
    state = array_state(unit.state for unit in units)
    if stage.shares_marker and state is State.DONE and look.records.marker(stage, None) != stage.key:
        state = State.NOT_SUBMITTED if look.queue.is_known else State.NOT_STARTED  # its workers ended well, but not it
    newest = max((attempts[-1] for _, attempts in found if attempts), key=lambda one: one.start_seconds, default=None)
    return StageReport(
        stage=stage,
        state=state,
        units=tuple(_with_errors(units)),
        progress=_progress(stage, state, units, newest),
    )


def _report_unit(
    task: int | None, state: State, attempts: Sequence[Attempt], job: QueuedJob | None, now_seconds: float
) -> UnitReport:
    newest = attempts[-1] if attempts else None
    if state is State.DONE:
        job = None
    starting = state is State.RUNNING and (newest is None or newest.outcome is not None)  # it has not said so yet
    if newest is None or starting:
        nodes, seconds = job.nodes if job and starting else None, None
    else:
        end_seconds = newest.end_seconds
        if end_seconds is None and state in _LIVE:
            end_seconds = now_seconds
        nodes, seconds = newest.nodes, None if end_seconds is None else max(0.0, end_seconds - newest.start_seconds)
    log = newest.log_path if newest and not starting else None
    is_pending = job is not None and state not in (State.RUNNING, State.FAILED)
    return UnitReport(
        task=task,
        state=state,
        job=job.job if job else newest.job if newest else None,
        reason=job.reason if job and is_pending else None,
        expected_start=job.start if job and is_pending else None,
        nodes=nodes,
        seconds=seconds,
        outcome=newest.outcome if newest else None,
        exit_code=newest.exit_code if newest else None,
        log=log,
        log_silent_seconds=_silent_seconds(log, now_seconds) if state in _LIVE else None,
        error=None,
        num_attempts=len(attempts),
        num_interruptions=num_interruptions(attempts, state),
        num_failures=sum(attempt.outcome in (Outcome.FAILED, Outcome.BAD_INPUT) for attempt in attempts),
    )


def _silent_seconds(log: Path | None, now_seconds: float) -> float | None:
    try:
        return None if log is None else max(0.0, now_seconds - log.stat().st_mtime)
    except OSError:
        return None


def _with_errors(units: Sequence[UnitReport]) -> list[UnitReport]:
    """The units, with the error in the log of the first MAX_ERRORS that failed or will be tried again."""
    with_errors, num_searched = [], 0
    for unit in units:
        failed = unit.state is State.FAILED or (unit.state is State.REQUEUED and unit.outcome is Outcome.FAILED)
        if failed and unit.log and num_searched < MAX_ERRORS:
            num_searched += 1
            unit = dataclasses.replace(unit, error=last_error(tail_lines(unit.log)))
        with_errors.append(unit)
    return with_errors


def _progress(stage: Stage, state: State, units: Sequence[UnitReport], newest: Attempt | None) -> StageProgress | None:
    if stage.kind == "train":
        return training_progress(stage, newest.log_path if newest else None)
    if stage.kind == "score":
        return scoring_progress(stage, may_run=state in _LIVE)
    if stage.tasks:
        num_done = sum(unit.state is State.DONE for unit in units)
        return StageProgress(unit="tasks", num_done=num_done, total=stage.tasks)
    return None


def _stage_as_json(report: StageReport) -> dict[str, Any]:
    units = []
    for unit in report.units:
        values = dataclasses.asdict(unit)
        units.append({**values, "log": None if unit.log is None else str(unit.log)})
    return {
        **dataclasses.asdict(report.stage),
        "output": str(report.stage.output),
        "state": report.state,
        "states": report.states,
        "failed_tasks": [unit.task for unit in report.units_in(State.FAILED) if unit.task is not None],
        "progress": None if report.progress is None else dataclasses.asdict(report.progress),
        "num_attempts": sum(unit.num_attempts for unit in report.units),
        "num_interruptions": sum(unit.num_interruptions for unit in report.units),
        "num_failures": sum(unit.num_failures for unit in report.units),
        "units": units,
    }
