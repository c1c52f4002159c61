"""Who may import whom: the contracts in pyproject.toml, which `make lint` checks, find what breaks them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINTER = Path(sys.executable).with_name("lint-imports")


def lint(directory: Path) -> tuple[int, str]:
    """Lint a copy of the package; the exit code, and what was printed."""
    process = subprocess.run([LINTER, "--no-cache"], cwd=directory, capture_output=True, text=True)
    return process.returncode, process.stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    shutil.copytree(REPOSITORY / "megatron_miniplm", tmp_path / "megatron_miniplm")
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path / "megatron_miniplm"


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("selection/top.py", "import megatron_miniplm.reports.report", "selection is not allowed to import"),
        ("scoring/rows.py", "from megatron_miniplm.selection import top", "scoring is not allowed to import"),
        ("artifacts/atomic.py", "import megatron_miniplm.indexed.view", "artifacts is not allowed to import"),
        ("corpus/units.py", "def f():\n    import megatron_miniplm.corpus.build", "No cycles are allowed in"),
    ],
)
def test_a_planted_import_is_found(package: Path, module: str, line: str, broken: str) -> None:
    with (package / module).open("a") as stream:
        stream.write(f"\n\n{line}\n")
    code, printed = lint(package.parent)
    assert code == 1
    assert broken in " ".join(printed.split())
