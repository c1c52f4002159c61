"""The report as text: one line a stage, with lines below it for what runs and what went wrong."""

from megatron_miniplm.artifacts.score_blocks import runs_of
from megatron_miniplm.runtime.text_table import aligned, duration
from megatron_miniplm.slurm.queue import State
from megatron_miniplm.slurm.records import Outcome
from megatron_miniplm.slurm.report import PipelineReport, StageReport, UnitReport, next_steps

_WIDTH = 120
_INDENT = "    "
_SHOWN_UNITS = 3
_SHOWN_RUNS = 8
_TITLES = ("STAGE", "STATE", "JOB", "PROGRESS", "LEFT", "STARTS", "")
_LEFT = frozenset({0, 1, 2, 3, 6})
_LIVE = (State.RUNNING, State.UNKNOWN)


def report_lines(report: PipelineReport) -> list[str]:
    """At most _WIDTH wide, but for paths and what squeue said."""
    counts = ", ".join(f"{count:,} {state}" for state, count in reversed(report.states.items()))
    lines = [f"{report.tag} in {report.run_dir}: {len(report.stages)} stages, {counts}"]
    if report.queue_error is not None:
        lines.append(f"which jobs are queued or alive is not known: {report.queue_error}")
    rows = [_TITLES, *(_row(stage, report) for stage in report.stages)]
    troubles: list[list[str]] = [[], *(_trouble(stage) for stage in report.stages)]
    for line, trouble in zip(aligned(rows, left=_LEFT), troubles, strict=True):
        lines += [_cut(line), *(_INDENT + line for line in trouble)]
    return [*lines, *(f"next: {step}" for step in next_steps(report))]


def _row(report: StageReport, pipeline: PipelineReport) -> tuple[str, ...]:
    """A cell for each of _TITLES."""
    progress, left = "", ""
    if report.progress is not None:
        of_all = "" if report.progress.total is None else f"/{report.progress.total:,}"
        progress = f"{report.progress.num_done:,}{of_all} {report.progress.unit}"
        if report.state in _LIVE and report.progress.seconds_left is not None:
            left = duration(report.progress.seconds_left)
    starts = sum(unit.num_attempts for unit in report.units)
    return (
        report.stage.name,
        report.state,
        _job(report),
        progress,
        left,
        f"{starts:,}" if starts else "",
        "; ".join(part for part in (_situation(report, pipeline), _cut_short(report)) if part),
    )


def _job(report: StageReport) -> str:
    """That of the stage, or of its whole array: the last submitted."""
    jobs = [unit.job.partition("_")[0] for unit in report.units if unit.job]
    return max(jobs, key=lambda job: (len(job), job), default="")


def _situation(report: StageReport, pipeline: PipelineReport) -> str:
    """Where and how long, what it waits for, or how its tasks are."""
    if report.state is State.WAITING:
        not_done = {stage.stage.name for stage in pipeline.stages if stage.state is not State.DONE}
        needed = [name for name in report.stage.after if name in not_done]
        return f"for {', '.join(needed)}" if needed else "for another job"
    if report.state is State.HELD_BACK:
        return f"needs {', '.join(_culprits(report, pipeline))}"
    if report.state is State.STALE:
        return "done with other settings, to be done again"
    if len(report.states) > 1:
        return ", ".join(f"{count:,} {state}" for state, count in report.states.items())
    if report.stage.tasks and report.state is not State.DONE:
        reason = _reason(report.units[0])
        return f"all {report.stage.tasks:,} tasks" + (f": {reason}" if reason else "")
    if report.stage.tasks:
        return ""
    return _unit_situation(report.units[0])


def _culprits(report: StageReport, pipeline: PipelineReport) -> list[str]:
    """Stages that it needs and that will not be done by themselves; all that are not done where none is known."""
    by_name = {stage.stage.name: stage for stage in pipeline.stages}
    needed = [by_name[name] for name in report.stage.after if by_name[name].state is not State.DONE]
    broken = (State.FAILED, State.HELD_BACK, State.CANCELLED, State.INTERRUPTED, State.NOT_SUBMITTED, State.STALE)
    return [stage.stage.name for stage in needed if stage.units_in(*broken)] or [stage.stage.name for stage in needed]


def _unit_situation(unit: UnitReport) -> str:
    place = f" on {unit.nodes}" if unit.nodes else ""
    span = "" if unit.seconds is None else duration(unit.seconds)
    match unit.state:
        case State.RUNNING:
            return f"{span}{place}" if span else f"starting{place}"
        case State.UNKNOWN:
            return f"started {span} ago{place}"
        case State.QUEUED | State.ON_HOLD | State.REQUEUED:
            expected = f", expected {unit.expected_start[:16].replace('T', ' ')}" if unit.expected_start else ""
            return f"{_reason(unit)}{expected}".removeprefix(", ")
        case State.FAILED:
            return _ending(unit) + (f" after {span}" if span else "") + place
        case State.DONE:
            return f"took {span}{place}" if span else ""
        case State.CANCELLED | State.INTERRUPTED:
            return f"after {span}{place}" if span else ""
    return ""


def _reason(unit: UnitReport) -> str:
    """SLURM's, which is `None` where it has not looked at a job yet."""
    return "" if unit.reason in (None, "None") else str(unit.reason)


def _ending(unit: UnitReport) -> str:
    match unit.outcome:
        case None:
            return "killed without a word (memory, a lost node, scancel)"
        case Outcome.BAD_INPUT:
            return f"exit code {unit.exit_code} (bad input)"
        case _:
            return f"exit code {unit.exit_code}"


def _cut_short(report: StageReport) -> str:
    """How many starts were interrupted or failed before the present one."""
    present = len(report.units_in(State.INTERRUPTED))
    interruptions = sum(unit.num_interruptions for unit in report.units) - present
    failures = sum(unit.num_failures for unit in report.units)
    parts = [f"{interruptions} interrupted"] if interruptions else []
    if failures := failures - sum(unit.outcome is not None for unit in report.units_in(State.FAILED)):
        parts.append(f"{failures} failed")
    return ", ".join([*parts[:-1], f"{parts[-1]} before"]) if parts else ""


def _trouble(report: StageReport) -> list[str]:
    """Lines below a stage: logs of what runs, errors and logs of what failed or is tried again."""
    lines = [report.progress.trouble] if report.progress is not None and report.progress.trouble else []
    failed = report.units_in(State.FAILED)
    if failed and report.stage.tasks:
        lines.append(f"failed tasks: {_task_runs(failed)}")
    for unit in failed[:_SHOWN_UNITS]:
        if unit.task is not None:
            lines.append(f"task {unit.task}: {_unit_situation(unit)}")
        lines += _error_and_log(unit)
    retried = [unit for unit in report.units_in(State.REQUEUED) if unit.error]
    for unit in retried[: 0 if failed else _SHOWN_UNITS]:
        lines += _error_and_log(unit)
    live = [unit for unit in report.units_in(*_LIVE, State.INTERRUPTED) if unit.log]
    if len(live) > _SHOWN_UNITS:
        return [*lines, f"logs: {live[0].log} and those of {len(live) - 1} more tasks"]
    return lines + [f"{_of_task(unit)}log{_silence(unit)}: {unit.log}" for unit in live]


def _silence(unit: UnitReport) -> str:
    """For how long a log has been silent: what hangs, or died where squeue cannot tell, writes no more."""
    return "" if unit.log_silent_seconds is None else f" (written {duration(unit.log_silent_seconds)} ago)"


def _of_task(unit: UnitReport) -> str:
    return "" if unit.task is None else f"task {unit.task}: {_unit_situation(unit)}, "


def _error_and_log(unit: UnitReport) -> list[str]:
    lines = [_cut(unit.error, _WIDTH - len(_INDENT))] if unit.error else []
    return [*lines, f"log: {unit.log}"] if unit.log else lines


def _task_runs(units: list[UnitReport]) -> str:
    runs = runs_of([unit.task for unit in units if unit.task is not None])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:_SHOWN_RUNS])
    return shown + (", ..." if len(runs) > _SHOWN_RUNS else "")


def _cut(text: str, width: int = _WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
