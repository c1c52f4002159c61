"""Files and modules of ours that pages, docstrings and comments name exist; so do the sources of `make mutations`."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "megatron_miniplm"
PATTERNS = ("*.md", "docs/*.md", "benchmarks/**/*.md", "examples/**/*.md", "megatron_miniplm/**/*.py", "tests/**/*.py")
#: What stands for the name of any command, and a file of Megatron.
OTHERS = {"tools/COMMAND.py", "core/datasets/indexed_dataset.py"}
FILE = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|sbatch|def))`")
MODULE = re.compile(r"`(?:megatron_miniplm\.)?([a-z_]+)\.([a-z_]+)`")


def missing_names(text: str, directory: Path) -> set[str]:
    """Files and modules that are named in backquotes, but are not there.

    A path counts from the repository, the package, `tests` or the directory of the text. `selection.json` is no module.
    """
    places = (REPOSITORY, PACKAGE, REPOSITORY / "tests", directory)
    files = {name for name in FILE.findall(text) if not any((place / name).exists() for place in places)}
    modules = {
        f"{package}.{name}"
        for package, name in MODULE.findall(text)
        if (PACKAGE / package).is_dir()
        and name not in ("json", "py")
        and not (PACKAGE / package / name).is_dir()
        and not (PACKAGE / package / f"{name}.py").exists()
        and not re.search(rf"\b{name}\b", (PACKAGE / package / "__init__.py").read_text(encoding="utf-8"))
    }
    return files - OTHERS | modules


@pytest.mark.parametrize("pattern", PATTERNS)
def test_files_and_modules_that_are_named_exist(pattern: str) -> None:
    pages = [path for path in sorted(REPOSITORY.glob(pattern)) if path != REPOSITORY / "CHANGELOG.md"]  # names the past
    assert pages
    missing = {page: missing_names(page.read_text(encoding="utf-8"), page.parent) for page in pages}
    assert {str(page.relative_to(REPOSITORY)): names for page, names in missing.items() if names} == {}


def test_what_is_missing_is_found() -> None:
    files = ("scoring/absent.py", "scoring/rows.py", "tests/conftest.py", "../README.md", "selection.json")
    modules = ("artifacts.absent", "artifacts.leases", "indexed.write_view")
    text = " ".join(f"`{name}`" for name in (*files, *modules))
    assert missing_names(text, REPOSITORY / "docs") == {"scoring/absent.py", "artifacts.absent"}


def planted_faults() -> ModuleType:
    spec = spec_from_file_location("mutations", REPOSITORY / "tests" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["mutations"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


def test_every_fault_of_make_mutations_can_be_planted() -> None:
    for name, mutation in planted_faults().MUTATIONS.items():
        source = (PACKAGE / mutation.file).read_text(encoding="utf-8")
        assert source.count(mutation.before) == 1, name
        assert [test for test in mutation.tests if not (REPOSITORY / "tests" / test).exists()] == [], name
