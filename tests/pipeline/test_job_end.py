"""The last line of a job's log: what launchers print below an error must not be the end of it."""

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
END = """
MINIPLM_HOME=$1 directory=$2 is_ours=$3
source "$1/slurm/job.sh"
BOOKS=$directory RECORD=$directory/record RETRIES=$directory/retries STAGE=select TASK= CANCELLED=
declare -A KIND=([select]=select)
is_ours() { return "$is_ours"; }
export MINIPLM_EXIT_CODES=$directory/codes
end_attempt "$(outcome_of 1)"
"""


def end(directory: Path, *, is_ours: bool) -> subprocess.CompletedProcess[str]:
    """End an attempt whose ranks have left their exit codes in `directory`."""
    command = ["bash", "-uo", "pipefail", "-c", END, "job", REPOSITORY, directory, "0" if is_ours else "1"]
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
