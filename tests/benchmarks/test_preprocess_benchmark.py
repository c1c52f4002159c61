"""benchmarks/preprocess.py end to end, on a text that takes no time."""

import ast
import json
import subprocess
import sys
import sysconfig
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "preprocess.py"


@pytest.fixture
def text_path(tmp_path: Path) -> Path:
    """Docstrings of two modules between documents without a token."""
    texts = [""]
    for name in ("argparse", "typing"):
        module = ast.parse(Path(sysconfig.get_path("stdlib"), f"{name}.py").read_text(encoding="utf-8"))
        documented = (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.ClassDef))
        texts += [ast.get_docstring(node) or "" for node in documented]
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def rows_of_first_table(page: str) -> dict[str, dict[str, str]]:
    """By their first cell."""
    below = dropwhile(lambda line: not line.startswith("|"), page.splitlines())
    lines = takewhile(lambda line: line.startswith("|"), below)
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(columns, row, strict=True)) for row in rows}


@pytest.mark.slow
def test_document_mode_is_timed_against_the_recipe_and_has_its_bytes(text_path: Path, tmp_path: Path) -> None:
    output, work_dir = tmp_path / "preprocess.md", tmp_path / "work"
    argv = ["--input", str(text_path), "--output", str(output), "--work-dir", str(work_dir), "--vocab-size", "400"]
    argv += ["--only", "documents", "--rivals", "recipe", "--repeats", "1", "--skip-startup", "--workers", "2"]
    process = subprocess.run([sys.executable, str(SCRIPT), *argv], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    page = output.read_text(encoding="utf-8")
    assert process.stdout.strip() in page
    rows = rows_of_first_table(page)
    assert list(rows) == ["miniplm preprocess-data", "Megatron's recipe"]
    assert rows["Megatron's recipe"][".bin, .idx"] == "identical"
    for row in rows.values():
        assert all(float(row[name].replace(",", "")) > 0 for name in ("wall s", "CPU s", "peak MB", "wall / ours"))
    assert "| wall time, recipe / ours |" in page
    assert not list(work_dir.iterdir())
