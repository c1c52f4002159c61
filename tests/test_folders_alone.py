"""`pytest tests/<package>` works by itself: no test imports from a folder that only other tests put on the path."""

import ast
from collections import defaultdict
from pathlib import Path

TESTS = Path(__file__).parent
SUPPORT = TESTS / "support"
FILES = sorted(TESTS.rglob("*.py"))
#: Folders of modules that tests import by their bare name, as pytest puts the folder of a test file on the path.
FOLDERS_OF: dict[str, set[Path]] = defaultdict(set)
for file in FILES:
    FOLDERS_OF[file.stem].add(file.parent)


def bare_imports(source: str) -> set[str]:
    """First names of all absolute imports."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    return {name.partition(".")[0] for name in names}


def imports_from_elsewhere(path: Path, source: str) -> set[str]:
    """Modules of tests/ that `path` imports and that lie neither beside it nor in tests/support."""
    return {
        name for name in bare_imports(source) if name in FOLDERS_OF and not FOLDERS_OF[name] & {path.parent, SUPPORT}
    }


def test_tests_import_from_their_own_folder_and_from_support_only() -> None:
    found = {path: imports_from_elsewhere(path, path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_import_from_another_folder_is_found() -> None:
    source = "import os\nfrom webdriver import Browser\nfrom megatron_runs import run\n"
    assert imports_from_elsewhere(TESTS / "commands" / "test_x.py", source) == {"webdriver"}
    assert imports_from_elsewhere(TESTS / "reports" / "test_x.py", source) == set()
