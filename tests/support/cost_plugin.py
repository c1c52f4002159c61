"""A pytest plugin that tells where the time of a run went and holds a whole run to its budget.

`--slowest N` prints the N most expensive tests and fixtures by wall and by CPU seconds, and a sum per package.
`--costs FILE` also fails the run if it outgrows the budget in FILE; `--write-costs FILE` writes that budget anew. Both
are meant for whole runs: the Makefile passes them, a partial run never should.

A fixture that several tests share (any scope above function) is an entry of its own, under the place where it is valid
and its name. So it has the same entry whichever test happens to need it first.
"""

from collections.abc import Generator, Mapping
from pathlib import Path

import pytest
from cost_budget import CpuSeconds, new_budget, overruns, read_budget, write_budget
from cost_meter import OVERHEAD, Cost, start_meter, stop_meter

DEFAULT_SLOWEST = 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("costs", "wall and CPU seconds of tests")
    group.addoption("--slowest", type=int, metavar="N", help="print the N most expensive tests and fixtures")
    group.addoption("--costs", type=Path, metavar="FILE", help="fail if this whole run outgrows the budget in FILE")
    group.addoption("--write-costs", type=Path, metavar="FILE", help="write the budget of this whole run to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CostPlugin(config), "test costs")


def pytest_unconfigure(config: pytest.Config) -> None:
    plugin = config.pluginmanager.unregister(name="test costs")
    if isinstance(plugin, CostPlugin):
        stop_meter(plugin.meter)


class CostPlugin:
    """Measures one session."""

    def __init__(self, config: pytest.Config) -> None:
        self.meter = start_meter()
        self._budget_path: Path | None = config.getoption("--costs")
        self._new_budget_path: Path | None = config.getoption("--write-costs")
        whole_run = self._budget_path or self._new_budget_path
        self._slowest: int = config.getoption("--slowest") or (DEFAULT_SLOWEST if whole_run else 0)
        self._budget = _read_budget(self._budget_path) if self._budget_path else None
        self._skipped: set[str] = set()
        self._verdict: list[str] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        self.meter.enter(item.nodeid)
        try:
            return (yield)
        finally:
            self.meter.leave(item.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if request.scope == "function":
            return (yield)
        name = _fixture_entry(fixturedef, request)
        entered: list[str] = []

        def enter_teardown() -> None:
            self.meter.enter(name)
            entered.append(name)

        def leave_teardown() -> None:
            if entered:
                self.meter.leave(entered.pop())

        # Finalizers run last in, first out: these two enclose the fixture's own teardown.
        request.addfinalizer(leave_teardown)
        self.meter.enter(name)
        try:
            return (yield)
        finally:
            self.meter.leave(name)
            request.addfinalizer(enter_teardown)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self._skipped.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        measured = {name: cost.cpu_seconds for name, cost in self.meter.costs().items()}
        if self._new_budget_path is not None:
            self._verdict = self._write(self._new_budget_path, measured, exitstatus)
        if self._budget is not None:
            self._verdict = overruns(self._budget, measured)
            if self._verdict:
                self._verdict.append(
                    f"Over the budget in {self._budget_path}. Make it cheaper, or run make test-costs and commit the "
                    "new budget with the reason. CPU seconds depend on the machine; see CONTRIBUTING.md."
                )
                session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._slowest:
            costs = self.meter.costs()
            for title, lines in (
                (f"slowest {self._slowest} by wall seconds", _slowest_lines(costs, "wall_seconds", self._slowest)),
                (f"slowest {self._slowest} by CPU seconds", _slowest_lines(costs, "cpu_seconds", self._slowest)),
                ("costs by package", _package_lines(costs)),
            ):
                terminalreporter.section(title)
                terminalreporter.write_line(f"{'wall s':>8} {'CPU s':>8}")
                for line in lines:
                    terminalreporter.write_line(line)
        if self._verdict:
            terminalreporter.section("budget of test costs", red=self._budget is not None)
            for line in self._verdict:
                terminalreporter.write_line(line)

    def _write(self, path: Path, measured: CpuSeconds, exitstatus: int) -> list[str]:
        if exitstatus != pytest.ExitCode.OK:
            return [f"{path} is left as it was: the run did not pass"]
        old = _read_budget(path) if path.exists() else {}
        write_budget(path, new_budget(old, measured, self._skipped))
        return [f"{path}: written"]


def _read_budget(path: Path) -> dict[str, float]:
    try:
        return read_budget(path)
    except FileNotFoundError:
        raise pytest.UsageError(f"{path}: no such file; --write-costs {path} writes it") from None
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None


def _fixture_entry(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> str:
    """`<module, class or folder>::<fixture>`, with the parameter's value or position where there is one."""
    place = request.node.nodeid or fixturedef.baseid or "(plugin)"
    parameter = getattr(request, "param", None)
    if parameter is None:
        return f"{place}::{fixturedef.argname}"
    plain = isinstance(parameter, str | int | float)
    return f"{place}::{fixturedef.argname}[{parameter if plain else request.param_index}]"


def _slowest_lines(costs: Mapping[str, Cost], field: str, count: int) -> list[str]:
    slowest = sorted(costs.items(), key=lambda entry: getattr(entry[1], field), reverse=True)[:count]
    return [_line(name, cost) for name, cost in slowest]


def _package_lines(costs: Mapping[str, Cost]) -> list[str]:
    """Sums over the folder that tests lie in (`tests/corpus`), the whole run last."""
    sums: dict[str, Cost] = {}
    for name, cost in costs.items():
        package = name if name == OVERHEAD else "/".join(name.partition("::")[0].split("/")[:2])
        sums[package] = sums.get(package, Cost()) + cost
    whole = sum(costs.values(), start=Cost())
    return [*(_line(package, sums[package]) for package in sorted(sums)), _line("(whole run)", whole)]


def _line(name: str, cost: Cost) -> str:
    return f"{cost.wall_seconds:8.1f} {cost.cpu_seconds:8.1f}  {name}"
