"""Runs of the job scripts that tests submit, one stage at a time, and watch: attempts, logs, ranks."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_runs import REPOSITORY
from slurm_cluster import SlurmCluster

SUBMIT = REPOSITORY / "slurm" / "submit_pipeline.sh"
#: Before its time limit, a job is warned. SLURM looks every 30 s which jobs are to be warned or killed.
STOP_SECONDS = 120
#: A cluster like that of `SlurmCluster`; what a test adds stands below it.
ENVIRONMENT = """\
source "$MINIPLM_HOME/slurm/env.sh"
RANKS_PER_NODE=2 GPU_FLAGS=() CPUS_PER_RANK=1 CPUS_PER_TOOL=2 STOP_SECONDS={stop_seconds}
NODE_LOCAL={directory}/node_local
setup_environment() {{
    export PATH="{programs}:$PATH" OMP_NUM_THREADS=1
}}
"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of a job, as it is written down below RUN_DIR/slurm/attempts.

    Attributes:
        number: 0 for the first start.
        exit_code, outcome: None where it did not say that it ended.
    """

    job: str
    number: int
    seconds: int | None
    exit_code: int | None
    outcome: str | None


class PipelineRun:
    """A configuration and an environment file in a directory, for the scripts below slurm/.

    Args:
        directory: RUN_DIR.
        configuration: settings as bash has them, a value for each name: `("a", "b c")` is an array.
        environment: lines of bash to be added to the environment file.
        programs: put before the `PATH` of jobs, first before the others.
    """

    def __init__(
        self,
        slurm: SlurmCluster,
        directory: Path,
        configuration: Mapping[str, str | Iterable[str | Path]],
        *,
        environment: str = "",
        programs: Iterable[Path] = (),
    ) -> None:
        self.slurm = slurm
        self.directory = directory
        self._configuration = dict(configuration)
        self._configuration_path = directory / "test.conf"
        self._environment_path = directory / "test_env.sh"
        (directory / "slurm" / "logs").mkdir(parents=True)
        paths = [*programs, Path(sys.executable).parent]
        self._environment = ENVIRONMENT.format(
            directory=directory, programs=":".join(map(str, paths)), stop_seconds=STOP_SECONDS
        )
        self.configure(environment=environment)

    def configure(self, *, environment: str | None = None, **settings: str | Iterable[str | Path]) -> None:
        """Change settings, and put other lines at the end of the environment file; queued jobs see it, too."""
        self._configuration |= settings
        lines = [f"{name}={_as_bash(value)}" for name, value in self._configuration.items()]
        self._configuration_path.write_text(f"RUN_DIR={shlex.quote(str(self.directory))}\n" + "\n".join(lines) + "\n")
        if environment is not None:
            self._environment_path.write_text(f"{self._environment}{environment}\n")

    def submit(self, stage: str) -> str:
        """Submit one stage exactly as submit_pipeline.sh would, without those that it needs; returns the job's id."""
        variables = {"MINIPLM_ENV": str(self._environment_path)}
        graph = self.slurm.run(SUBMIT, self._configuration_path, "--dry-run", cwd=REPOSITORY, variables=variables)
        calls = [shlex.split(line) for line in graph.splitlines() if line.startswith("    sbatch ")]
        (call,) = [words for words in calls if words[-1] == stage]
        assert call[-2] == "CONFIGURATION"
        call[-2] = str(self._configuration_path)
        dependencies = next((word for word in call if word.startswith("--dependency=")), "")
        assert "afterok" not in dependencies, f"{stage} waits for other stages: {dependencies}"
        variables["MINIPLM_HOME"] = str(REPOSITORY)
        return self.slurm.run(*call, cwd=REPOSITORY, variables=variables).strip()

    def come_near_time_limit(self, job: str) -> None:
        """Move a running job's time limit to where SLURM warns the job within 30 s, and kills it later."""
        self.slurm.run("scontrol", "update", f"jobid={job}", f"EndTime=now+{STOP_SECONDS}seconds")

    def forget_time_limit(self, job: str) -> None:
        """Give a job the half hour again that it was submitted with."""
        self.slurm.run("scontrol", "update", f"jobid={job}", "TimeLimit=30")

    def attempts(self, unit: str) -> list[Attempt]:
        """All starts of a stage (`<stage>.<task>` in an array), by job and number."""
        found = []
        for path in (self.directory / "slurm" / "attempts" / unit).iterdir():
            job, _, number = path.name.partition(".")
            start, *end = (line.split() for line in path.read_text().splitlines())
            assert start[0] == "start"
            assert len(end) < 2, f"{path}: it ended twice"
            found.append(
                Attempt(
                    job=job,
                    number=int(number),
                    seconds=int(end[0][1]) - int(start[1]) if end else None,
                    exit_code=int(end[0][2]) if end else None,
                    outcome=end[0][3] if end else None,
                )
            )
        return sorted(found, key=lambda attempt: (int(attempt.job), attempt.number))

    def outcomes(self, unit: str) -> list[str | None]:
        return [attempt.outcome for attempt in self.attempts(unit)]

    def is_done(self, stage: str) -> bool:
        """Whether the stage is marked as done, so that it is not submitted again."""
        return (self.directory / "slurm" / "done" / stage).exists()


def _as_bash(value: str | Iterable[str | Path]) -> str:
    return shlex.quote(value) if isinstance(value, str) else f"({shlex.join(map(str, value))})"


def write_program(path: Path, text: str) -> None:
    """An executable bash script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}")
    path.chmod(0o755)


def write_order(path: Path, text: str) -> None:
    """Write a file that running programs read, whole or not at all."""
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").rename(path)


def program_path(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not on PATH"
    return found


def processes_of_job(
    slurm: SlurmCluster, job: str, is_wanted: Callable[[list[str]], bool] = lambda words: True
) -> dict[int, dict[str, str]]:
    """Living processes of a job whose command line is wanted: their variables, by process id as seen from here.

    They may belong to an earlier start of the job.
    """
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = _words(entry / "cmdline") if entry.name.isdecimal() else []
            if not words or not is_wanted(words):
                continue
            variables = dict(pair.partition("=")[::2] for pair in _words(entry / "environ"))
            here = variables.get("SLURM_CONF") == slurm.environment()["SLURM_CONF"]
            if here and variables.get("SLURM_JOB_ID") == job:
                found[int(entry.name)] = variables
    return found


def kill_rank(slurm: SlurmCluster, job: str, rank: int) -> None:
    processes = processes_of_job(slurm, job)
    (pid,) = [pid for pid, variables in processes.items() if variables.get("RANK") == str(rank)]
    os.kill(pid, signal.SIGKILL)


def _words(path: Path) -> list[str]:
    """Of a file below /proc that ends each with a zero byte."""
    return path.read_bytes().decode(errors="replace").split("\0")[:-1]
