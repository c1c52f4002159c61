"""The last line of a job's log: what launchers print below an error must not be the end of it."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
END = """
MINIPLM_HOME=$1 directory=$2 is_ours=$3
source "$1/slurm/job.sh"
PROGRESS=0 MAX_FAILURES=3 MAX_INTERRUPTIONS=20
JOB=17 BOOKS=$directory RECORD=$directory/record RETRIES=$directory/retries STAGE=select TASK= CANCELLED=
declare -A KIND=([select]=select)
is_ours() { return "$is_ours"; }
export MINIPLM_EXIT_CODES=$directory/codes
end_attempt "$(outcome_of "$4")"
"""


def end(directory: Path, *, is_ours: bool, status: int = 1, shown: str | None = "") -> subprocess.CompletedProcess[str]:
    """End an attempt whose ranks have left their exit codes in `directory`.

    Args:
        status: what srun has ended with.
        shown: what `scontrol show job` prints; None if slurmctld does not answer.
    """
    arguments = [REPOSITORY, directory, "0" if is_ours else "1", str(status)]
    answer = "return 1" if shown is None else f"[ $1 != show ] || echo '{shown}'"
    script = f"scontrol() {{ {answer}; }}\nsleep() {{ :; }}\n{END}"
    command = ["bash", "-uo", "pipefail", "-c", script, "job", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("others", [(), (75,), (1,)])
def test_the_error_of_bad_input_is_said_again(tmp_path: Path, others: tuple[int, ...]) -> None:
    for code in (2, *others):
        (tmp_path / f"codes.{code}").write_text(f"error: of code {code}\n")
    done = end(tmp_path, is_ours=True)
    assert done.returncode == 2, done.stderr
    outcome, error = done.stdout.splitlines()
    assert outcome.endswith(" bad-input")
    assert error.endswith(" error: of code 2")
    assert not list(tmp_path.glob("codes.*"))


def test_of_a_cancelled_job_no_error_is_said(tmp_path: Path) -> None:
    (tmp_path / "codes.2").write_text("error: no such corpus\n")
    done = end(tmp_path, is_ours=False)
    assert done.returncode == 143, done.stderr
    (outcome,) = done.stdout.splitlines()
    assert outcome.endswith(" cancelled")


NOT_TOLD = "JobId=17 EndTime=2099-01-01T00:00:00 PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=None Restarts=0"
PREEMPTED = NOT_TOLD.replace("PreemptTime=None", "PreemptTime=2026-01-01T00:00:00")
TIME_IS_UP = NOT_TOLD.replace("2099-", "2026-")


@pytest.mark.parametrize(
    ("status", "codes", "shown", "outcome"),
    [
        (143, [], NOT_TOLD, "failed"),  # a peer of a rank that has died
        (143, [75], NOT_TOLD, "failed"),
        (138, [], NOT_TOLD, "failed"),
        (137, [75], NOT_TOLD, "failed"),  # out of memory; its peers stopped as they should
        (1, [75], NOT_TOLD, "failed"),  # torchrun's code
        (75, [75], NOT_TOLD, "interrupted"),  # all ranks say so
        (143, [], PREEMPTED, "interrupted"),
        (137, [75], PREEMPTED, "interrupted"),
        (143, [], TIME_IS_UP, "interrupted"),
        (1, [75], TIME_IS_UP, "interrupted"),
        (143, [], None, "interrupted"),  # slurmctld is away: the larger number of starts
        (143, [1], PREEMPTED, "failed"),  # a rank has crashed
        (139, [], PREEMPTED, "failed"),
    ],
)
def test_peers_of_a_dead_rank_are_no_interruption(
    tmp_path: Path, status: int, codes: list[int], shown: str | None, outcome: str
) -> None:
    for code in codes:
        (tmp_path / f"codes.{code}").touch()
    done = end(tmp_path, is_ours=True, status=status, shown=shown)
    assert (tmp_path / "record").read_text().split()[-1] == outcome, done.stderr
    assert (tmp_path / "retries").read_text() == ("1 0\n" if outcome == "failed" else "0 1\n")


PUBLISH = 'umask 027; source "$1/slurm/pipeline.sh"; publish "$2" "$3"'


def publish(path: Path, text: str) -> int:
    return subprocess.run(["bash", "-euo", "pipefail", "-c", PUBLISH, "job", REPOSITORY, path, text]).returncode


def test_a_file_is_published_whole_and_readable(tmp_path: Path) -> None:
    for text in ("1 2", "3 4"):
        assert publish(tmp_path / "retries", text) == 0
        assert (tmp_path / "retries").read_text() == f"{text}\n"
    assert (tmp_path / "retries").stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["retries"]


def test_what_cannot_be_published_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken" / "retries").mkdir(parents=True)
    (tmp_path / "taken" / "retries" / "retries").mkdir()
    assert publish(tmp_path / "nowhere" / "retries", "1 2") != 0
    assert not (tmp_path / "nowhere").exists()
