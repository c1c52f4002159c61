"""The budget of the test suite: CPU seconds of the whole run and of every test, in a file that people can compare.

One line per entry, `<CPU seconds>\\t<name>`, sorted by name and so by test file. CPU seconds depend on the machine, and
nothing is calibrated: on a machine that is much slower than the one the budget was written on, write it anew.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

WHOLE_RUN = "(whole run)"
#: The run fails when the whole outgrows its budget by more than this.
WHOLE_GROWTH_FRACTION = 0.2
#: The run fails when one entry outgrows its budget by more than this fraction and by at least so many seconds.
ENTRY_GROWTH_FRACTION = 0.5
ENTRY_GROWTH_CPU_SECONDS = 5.0
#: A rewritten budget keeps a number that differs by no more than this fraction or so many seconds: small diffs.
KEPT_DIFFERENCE_FRACTION = 0.2
KEPT_DIFFERENCE_CPU_SECONDS = 0.5
HEADING = "# CPU seconds of every test and shared fixture; `make test-costs` writes this file. See CONTRIBUTING.md.\n"

#: Name of an entry -> CPU seconds.
CpuSeconds = Mapping[str, float]


def read_budget(path: Path) -> dict[str, float]:
    """The entries of a budget file.

    Raises:
        ValueError: a line is not a number, a tab and a name, or the whole run is missing.
    """
    budget: dict[str, float] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("#"):
            continue
        seconds, separator, name = line.partition("\t")
        try:
            budget[name] = float(seconds)
        except ValueError:
            separator = ""
        if not separator:
            raise ValueError(f"{path}:{number}: expected `<CPU seconds><tab><name>`, found {line!r}: write it anew")
    if WHOLE_RUN not in budget:
        raise ValueError(f"{path}: expected a line for {WHOLE_RUN}, found none: write it anew")
    return budget


def write_budget(path: Path, budget: CpuSeconds) -> None:
    """Write `budget` in the order of names, the whole run first."""
    names = sorted(budget, key=lambda name: (name != WHOLE_RUN, name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADING + "".join(f"{budget[name]:.1f}\t{name}\n" for name in names), encoding="utf-8")


def new_budget(old: CpuSeconds, measured: CpuSeconds, skipped: Collection[str]) -> dict[str, float]:
    """The budget that a run leaves behind: what it measured, without noise in numbers that have hardly changed.

    Tests that this machine skips keep their old entry: another machine runs them.
    """
    budget = {WHOLE_RUN: sum(measured.values())}
    for name, seconds in measured.items():
        if name not in skipped:
            budget[name] = old[name] if name in old and _hardly_changed(old[name], seconds) else seconds
        elif name in old:
            budget[name] = old[name]
    return budget


def overruns(budget: CpuSeconds, measured: CpuSeconds) -> list[str]:
    """One line for the whole run, and for every entry, that outgrew its budget.

    An entry without a budget (a new test) only adds to the whole.
    """
    whole = sum(measured.values())
    lines = []
    if whole > budget[WHOLE_RUN] * (1 + WHOLE_GROWTH_FRACTION):
        lines.append(_overrun(WHOLE_RUN, budget[WHOLE_RUN], whole))
    lines += [
        _overrun(name, budget[name], seconds)
        for name, seconds in measured.items()
        if name in budget
        and seconds > budget[name] * (1 + ENTRY_GROWTH_FRACTION)
        and seconds >= budget[name] + ENTRY_GROWTH_CPU_SECONDS
    ]
    return lines


def _hardly_changed(old: float, new: float) -> bool:
    return abs(new - old) <= max(KEPT_DIFFERENCE_CPU_SECONDS, KEPT_DIFFERENCE_FRACTION * old)


def _overrun(name: str, budget: float, found: float) -> str:
    return f"{name}: {found:.1f} CPU seconds, budget {budget:.1f}"
