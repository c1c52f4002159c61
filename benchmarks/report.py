"""Tables of a benchmark as Markdown, and the machine that they hold for."""

import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("megatron-miniplm", "megatron-core", "tokenizers", "transformers", "gigatoken", "numpy", "pyarrow", "torch")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A figure and the bound that it is held against."""

    figure: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    def row(self) -> dict[str, str]:
        bounds = [(">=", self.at_least), ("<=", self.at_most)]
        return {
            "figure": self.figure,
            "measured": f"{self.value:.2f} {self.unit}",
            "target": " and ".join(f"{sign} {bound:g} {self.unit}" for sign, bound in bounds if bound is not None),
            "met": "yes" if self.met else "NO",
        }


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table and what belongs to it.

    Attributes:
        rows: with the same columns.
        notes: what must be known to read them.
        faults: outputs that had to be identical and are not.
    """

    title: str
    rows: list[dict[str, str]]
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        parts = [f"## {self.title}", markdown_table(self.rows), *self.notes]
        if self.targets:
            parts.append(markdown_table([target.row() for target in self.targets]))
        return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """A table of rows with the same keys; all columns but the first are aligned to the right."""
    columns = list(rows[0])
    widths = {column: max(len(column), *(len(row[column]) for row in rows)) for column in columns}
    first, *others = columns

    def line(row: dict[str, str]) -> str:
        cells = [row[first].ljust(widths[first]), *(row[column].rjust(widths[column]) for column in others)]
        return f"| {' | '.join(cells)} |"

    rule = "|".join(["-" * (widths[first] + 2), *("-" * (widths[column] + 1) + ":" for column in others)])
    return "\n".join([line({column: column for column in columns}), f"|{rule}|", *map(line, rows)])


def machine_markdown(argv: Sequence[str]) -> str:
    """Under what the figures were taken: command line, date, processor, load, versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return "\n".join(
        [
            f"- command: `{' '.join(['python', *argv])}`",
            f"- date: {datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
            f"- processor: {cpu_model()}, {len(os.sched_getaffinity(0))} cores; "
            f"load of the last minute when it began: {os.getloadavg()[0]:.2f}",
            f"- {platform.system()} {platform.release()}, Python {platform.python_version()}, {versions}",
        ]
    )


def cpu_model() -> str:
    """The processor's name as the kernel gives it."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return found[1] if found else platform.processor()
