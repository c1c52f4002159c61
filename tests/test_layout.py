"""Who may import whom: what is built on the stages is not known to them."""

import ast
from pathlib import Path

import pytest

import megatron_miniplm

PACKAGE = Path(megatron_miniplm.__file__).parent
#: These are imported by commands only, or by themselves.
OUTER = ("planning", "reports")


def imported_packages(source: str) -> set[str]:
    """Packages of megatron_miniplm that a module imports anywhere, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("megatron_miniplm.")}


@pytest.mark.parametrize("outer", OUTER)
def test_only_commands_import_what_stands_around_the_stages(outer: str) -> None:
    modules = {path.relative_to(PACKAGE): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    importers = {path.parts[0] for path, source in modules.items() if outer in imported_packages(source)}
    assert importers == {"commands", outer}


def test_every_kind_of_import_is_found() -> None:
    source = "def run():\n    import megatron_miniplm.one.x\n    from megatron_miniplm import two\n"
    assert imported_packages(source + "from megatron_miniplm.three.y import z\n") == {"one", "two", "three"}
