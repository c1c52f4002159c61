"""Commands in the README, the docs and the quickstart exist, with the flags that they are shown with."""

import argparse
import importlib
import re
from pathlib import Path

import pytest

from megatron_miniplm.cli import COMMANDS, MEGATRON_PROGRAMS

REPOSITORY = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "docs/method.md",
    "docs/corpus.md",
    "docs/checkpoints.md",
    "docs/scoring.md",
    "docs/selection.md",
    "docs/training.md",
    "docs/evaluation.md",
    "docs/tasks.md",
    "docs/launch.md",
    "docs/distillation.md",
    "docs/generation.md",
    "docs/analysis.md",
    "docs/recipes.md",
    "docs/plan.md",
    "docs/slurm.md",
    "docs/formats.md",
    "docs/scaling.md",
    "examples/quickstart/run.sh",
    "examples/replication/run.sh",
    "examples/steps.sh",
)
COMMAND = re.compile(r"miniplm ([a-z]+(?:-[a-z]+)*)((?:[^\n`\\|)]|\\\n)*)")


def documented_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Page, command and flags of every command that is shown."""
    return [
        (page, name, tuple(re.findall(r"(?<!\S)--[a-z-]+", rest)))
        for page in PAGES
        for name, rest in COMMAND.findall((REPOSITORY / page).read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("page", "name", "flags"), documented_commands())
def test_a_documented_command_exists_with_its_flags(page: str, name: str, flags: tuple[str, ...]) -> None:
    assert name in COMMANDS, f"{page} shows miniplm {name}"
    if name in MEGATRON_PROGRAMS:
        return  # Megatron's own flags; the quickstart runs it
    parser = argparse.ArgumentParser()
    importlib.import_module(f"megatron_miniplm.commands.{COMMANDS[name][0]}").add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    assert set(flags) <= known, f"{page} shows miniplm {name} with {set(flags) - known}"


def test_every_command_of_the_road_is_documented() -> None:
    shown = {name for _, name, _ in documented_commands()}
    assert shown >= set(COMMANDS)


def test_every_tool_script_names_its_command() -> None:
    scripts = {path.stem for path in (REPOSITORY / "tools").glob("*.py")}
    expected = {module for module, _ in COMMANDS.values()} - {"inspect"} | {"inspect_artifact"}
    assert scripts == expected
    for path in (REPOSITORY / "tools").glob("*.py"):
        name = re.search(r'run_tool\("([a-z-]+)"\)', path.read_text(encoding="utf-8"))
        assert name is not None
        assert COMMANDS[name[1]][0] in (path.stem, path.stem.removesuffix("_artifact"))
