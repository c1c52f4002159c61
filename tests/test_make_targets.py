"""The make targets that pages, hooks and CI jobs name exist."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NAMING = (
    ".ci/run",
    ".github/workflows/ci.yml",
    ".github/workflows/release.yml",
    ".pre-commit-config.yaml",
    "CONTRIBUTING.md",
    "README.md",
    *(path.relative_to(REPOSITORY).as_posix() for path in sorted((REPOSITORY / "docs").glob("*.md"))),
)
#: In code (backquotes, a command line, a step of a job), not the verb of a sentence.
NAMED = re.compile(r"(?:^|[`&;]|run: |entry: |=1 |time )\s*make ([a-z][a-z-]*)", re.MULTILINE)


def targets() -> set[str]:
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


@pytest.mark.parametrize("page", NAMING)
def test_make_targets_that_are_named_exist(page: str) -> None:
    assert set(NAMED.findall((REPOSITORY / page).read_text(encoding="utf-8"))) - targets() == set()


def test_ci_and_hooks_name_targets() -> None:
    """The pattern finds what it is to check."""
    named = {page: set(NAMED.findall((REPOSITORY / page).read_text(encoding="utf-8"))) for page in NAMING}
    assert named[".github/workflows/ci.yml"] >= {"lint", "unit", "contract", "end-to-end", "slurm", "slurm-tests"}
    assert named[".pre-commit-config.yaml"] >= {"lint-check", "lint-format", "lint-types", "lint-shell"}
    assert named["CONTRIBUTING.md"] >= {"test-fast", "test-costs", "unit"}


def test_every_part_of_the_suite_is_in_exactly_one_job() -> None:
    """`unit` leaves out the folders that other targets run, and no other."""
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (unit,) = re.findall(r"^unit:.*\n\t(.*)", text, re.MULTILINE)
    left_out = set(re.findall(r"--ignore (tests/\w+)", unit))
    run_elsewhere = {folder for folder in left_out if re.search(rf"-m pytest {folder}\b", text)}
    assert left_out == run_elsewhere == {"tests/contract", "tests/end_to_end", "tests/slurm"}
