"""Who may import whom, by the contracts in pyproject.toml that `make lint` checks; where the tests of a module are."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
#: Share of modules that have a test file of their path.
LEAST_MIRRORED = 0.8
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


def unmirrored(package: Path, tests: Path) -> tuple[list[str], int]:
    """Modules without a test file of their path, and the number of all modules: a/b.py is tested in a/test_b.py."""
    paths = [path.relative_to(package) for path in sorted(package.rglob("*.py"))]
    modules = [path for path in paths if path.stem not in ("__init__", "__main__")]
    missing = [str(path) for path in modules if not (tests / path.parent / f"test_{path.name}").is_file()]
    return missing, len(modules)


def test_tests_mirror_the_package() -> None:
    missing, num_modules = unmirrored(REPOSITORY / "megatron_miniplm", REPOSITORY / "tests")
    assert num_modules > 100
    share = 1 - len(missing) / num_modules
    assert share >= LEAST_MIRRORED, f"{share:.1%} of {num_modules} modules have a test file, without: {missing}"


def test_a_module_without_a_test_file_is_found(tmp_path: Path) -> None:
    for path in ("package/__init__.py", "package/a/b.py", "package/a/c.py", "tests/a/test_b.py", "tests/test_c.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert unmirrored(tmp_path / "package", tmp_path / "tests") == (["a/c.py"], 2)
