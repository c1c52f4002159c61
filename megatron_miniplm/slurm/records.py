"""The book-keeping of a SLURM pipeline: plain text that the scripts in slurm/ write, one small file a fact.

    RUN_DIR/slurm/pipeline.tsv                            the stages; replaced as a whole
    RUN_DIR/slurm/done/<stage>[.<task>]                   key of the settings that it was done with
    RUN_DIR/slurm/attempts/<stage>[.<task>]/<job>.<n>     the n-th start of a job: its lines `start ...` and `end ...`

Jobs write while we read: a line without its newline is not there yet, and a file that cannot be read says nothing.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from megatron_miniplm.errors import InputError

FORMAT_VERSION = 1
KINDS = ("tokenizer", "preprocess", "split", "train", "score", "select", "materialize", "measure", "evaluate")
SUBMIT = "submit_pipeline.sh"

_COLUMNS = ("stage", "kind", "tasks", "after", "output", "total", "key")
_HEADER = re.compile(r"# miniplm pipeline (\d+)\t([^\t]+)")
_NAME = re.compile(r"\w[\w.-]*")
_ATTEMPT = re.compile(r"(\d+)\.(\d+)")


class Outcome(StrEnum):
    """How an attempt ended; of `interrupted` and `failed` ones SLURM starts the same job again."""

    DONE = "done"
    BAD_INPUT = "bad-input"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A line of pipeline.tsv.

    Attributes:
        tasks: size of its SLURM array, whose tasks count from 0; 0 for a stage that is no array.
        after: stages that it needs.
        output: what it makes: for `score` the directory of scores, for `train` that of Megatron's checkpoints.
        total: iterations of a training.
        key: digest of its settings.
    """

    name: str
    kind: str
    tasks: int
    after: tuple[str, ...]
    output: Path
    total: int | None
    key: str

    @property
    def unit_tasks(self) -> Sequence[int | None]:
        """The tasks of an array, or None once for a stage that is none."""
        return range(self.tasks) if self.tasks else (None,)

    @property
    def shares_marker(self) -> bool:
        """Whether the tasks of its array are done together: they fill one output."""
        return self.tasks > 0 and self.kind == "score"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """pipeline.tsv: `tag`, with which the names of the jobs begin, and the stages in order."""

    tag: str
    stages: tuple[Stage, ...]

    def job_name(self, stage: Stage) -> str:
        return f"{self.tag}.{stage.name}"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job.

    Attributes:
        job_id: what SLURM counts jobs by; each task of an array has its own.
        restart: how often SLURM had requeued the job by then.
        start_seconds: since 1970; of the file where the line cannot be read yet.
        job: as squeue shows it, such as `17` or `17_3`.
        end_seconds, exit_code, outcome: None while it runs, and for ever where it was killed.
    """

    job_id: int
    restart: int
    start_seconds: float
    nodes: str | None = None
    job: str | None = None
    log_path: Path | None = None
    end_seconds: float | None = None
    exit_code: int | None = None
    outcome: Outcome | None = None


def read_pipeline(run_dir: Path) -> Pipeline:
    """The stages of a run.

    Raises:
        InputError: no pipeline was submitted there, or the file is of another format or damaged.
    """
    path = run_dir / "slurm" / "pipeline.tsv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{run_dir} is not the directory of a submitted pipeline: it has no slurm/pipeline.tsv, which {SUBMIT} "
            "writes; give the run directory that was submitted"
        ) from None
    except UnicodeDecodeError:
        raise _malformed(path, 1, "is not text", "UTF-8") from None
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if header is None:
        raise _malformed(path, 1, f"is {_shown(lines[0] if lines else '')}", "'# miniplm pipeline 1', a tab, the tag")
    if int(header[1]) != FORMAT_VERSION:
        raise InputError(
            f"{path}, line 1: format {header[1]}, this release reads {FORMAT_VERSION}: use the release of {SUBMIT}, or "
            "submit again with that of this release"
        )
    stages: dict[str, Stage] = {}
    for number, line in enumerate(lines[1:], start=2):
        stage = _parse_stage(path, number, line)
        if stage.name in stages:
            raise _malformed(path, number, f"is a second stage {stage.name}", "each stage once")
        stages[stage.name] = stage
    if not stages:
        raise _malformed(path, 2, "is missing", "at least one stage")
    for number, stage in enumerate(stages.values(), start=2):
        if unknown := [name for name in stage.after if name not in stages]:
            raise _malformed(path, number, f"needs {', '.join(unknown)}", "stages of this file in column 4 (after)")
    return Pipeline(tag=header[2], stages=tuple(stages.values()))


class Records:
    """What the jobs of a run have written; the directories are listed once, files read when asked for."""

    def __init__(self, run_dir: Path) -> None:
        self._done = run_dir / "slurm" / "done"
        self._attempts = run_dir / "slurm" / "attempts"
        self._logs = run_dir / "slurm" / "logs"
        self._done_names = _names_in(self._done)
        self._attempted_names = _names_in(self._attempts)

    def marker(self, stage: Stage, task: int | None) -> str | None:
        """Key of the settings with which a stage or task was done; None if it was not."""
        name = _unit_name(stage, None if stage.shares_marker else task)
        if name not in self._done_names:
            return None
        try:
            return (self._done / name).read_text(encoding="utf-8", errors="replace").strip() or None
        except OSError:
            return None

    def attempts(self, stage: Stage, task: int | None) -> list[Attempt]:
        """All starts of a stage or task, the oldest first."""
        name = _unit_name(stage, task)
        if name not in self._attempted_names:
            return []
        directory = self._attempts / name
        found = [self._read_attempt(directory / name) for name in _names_in(directory)]
        attempts = [attempt for attempt in found if attempt is not None]
        return sorted(attempts, key=lambda attempt: (attempt.start_seconds, attempt.job_id, attempt.restart))

    def _read_attempt(self, path: Path) -> Attempt | None:
        name = _ATTEMPT.fullmatch(path.name)
        if name is None:
            return None
        try:
            with open(path, encoding="utf-8", errors="replace") as stream:
                written_seconds = os.fstat(stream.fileno()).st_mtime
                lines = stream.readlines()
        except OSError:
            return None
        fields: dict[str, list[str]] = {}
        for line in lines:
            if line.endswith("\n"):
                word, *rest = line.rstrip("\n").split(" ", 4)
                fields[word] = rest
        start_seconds, nodes, job, log = _padded(fields.get("start", []), 4)
        end_seconds, exit_code, outcome, _ = _padded(fields.get("end", []), 4)
        return Attempt(
            job_id=int(name[1]),
            restart=int(name[2]),
            start_seconds=_number(start_seconds) or written_seconds,
            nodes=nodes,
            job=job,
            log_path=self._log_path(log) if log and log != "-" else None,
            end_seconds=_number(end_seconds),
            exit_code=None if (code := _number(exit_code)) is None else int(code),
            outcome=_outcome(outcome) if end_seconds else None,
        )

    def _log_path(self, written: str) -> Path:
        """A log where it was written, or among the logs of this run where the run was moved or is mounted elsewhere."""
        path = Path(written)
        here = self._logs / path.name
        return here if not path.exists() and here.exists() else path


def _parse_stage(path: Path, number: int, line: str) -> Stage:
    values = line.split("\t")
    if len(values) != len(_COLUMNS):
        raise _malformed(
            path, number, f"has {len(values)} columns", f"{len(_COLUMNS)} between tabs ({', '.join(_COLUMNS)})"
        )
    name, kind, tasks, after, output, total, key = values
    needed = () if after == "-" else tuple(after.split(","))
    for column, value, is_right, expected in (
        ("stage", name, _NAME.fullmatch(name), "letters, digits, '_', '-' and '.'"),
        ("kind", kind, kind in KINDS, f"one of {', '.join(KINDS)}"),
        ("tasks", tasks, _is_count(tasks), "a number from 0"),
        ("after", after, all(map(_NAME.fullmatch, needed)), "stages between commas, or -"),
        ("output", output, output, "a path"),
        ("total", total, total == "-" or _is_count(total), "a number from 0, or -"),
        ("key", key, re.fullmatch(r"[0-9a-f]+", key), "a hex digest"),
    ):
        if not is_right:
            raise _malformed(path, number, f"has {_shown(value)} as {column}", expected)
    return Stage(
        name=name,
        kind=kind,
        tasks=int(tasks),
        after=needed,
        output=Path(output),
        total=None if total == "-" else int(total),
        key=key,
    )


def _malformed(path: Path, number: int, found: str, expected: str) -> InputError:
    return InputError(
        f"{path}, line {number} {found}, expected {expected}: run {SUBMIT} again, it writes the file anew"
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _is_count(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,15}", text) is not None


def _unit_name(stage: Stage, task: int | None) -> str:
    return stage.name if task is None else f"{stage.name}.{task}"


def _names_in(directory: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(directory))
    except OSError:
        return frozenset()


def _padded(values: list[str], size: int) -> list[str | None]:
    return [*values[:size], *[None] * (size - len(values))]


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"[0-9]{1,15}(\.[0-9]*)?", text) else None


def _outcome(word: str | None) -> Outcome:
    """A word that this release does not know is no success."""
    return next((outcome for outcome in Outcome if outcome == word), Outcome.FAILED)
