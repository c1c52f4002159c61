"""Runs of the job scripts that tests submit, one stage at a time, and watch: attempts, logs, ranks."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from megatron_runs import REPOSITORY
from slurm_cluster import SlurmCluster

SUBMIT = REPOSITORY / "slurm" / "submit_pipeline.sh"
#: A cluster like that of `SlurmCluster`; what a test adds stands below it.
ENVIRONMENT = """\
source "$MINIPLM_HOME/slurm/env.sh"
RANKS_PER_NODE=2 GPU_FLAGS=() CPUS_PER_RANK=1 CPUS_PER_TOOL=2 STOP_SECONDS=120
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
        self._environment = ENVIRONMENT.format(directory=directory, programs=":".join(map(str, paths)))
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


def program_path(name: str) -> str:
    found = shutil.which(name)
    assert found is not None, f"{name} is not on PATH"
    return found


def ranks_of(slurm: SlurmCluster, job: str) -> dict[int, int]:
    """Process ids, as seen from here, of the living ranks of a job; of an earlier start, too, while they live."""
    found = {}
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdecimal() or not (entry / "cmdline").read_bytes():
                continue
            pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            variables = dict(pair.partition("=")[::2] for pair in pairs)
            here = variables.get("SLURM_CONF") == slurm.environment()["SLURM_CONF"]
            if here and variables.get("SLURM_JOB_ID") == job and "RANK" in variables:
                found[int(variables["RANK"])] = int(entry.name)
    return found


def kill_rank(slurm: SlurmCluster, job: str, rank: int) -> None:
    os.kill(ranks_of(slurm, job)[rank], signal.SIGKILL)
