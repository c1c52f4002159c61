"""Wall and CPU seconds of whatever runs, each second booked under exactly one name.

Names are entered and left like stack frames. Time that passes is booked under the innermost name, so a fixture that is
set up inside a test costs the test nothing. CPU seconds are those of this process with all its threads, and of children
that it has waited for. A process that is not our child (a server that forks ranks for many tests) reports its own
through `add_cpu_seconds`.
"""

import resource
import time
from dataclasses import dataclass

#: What is booked while no test and no fixture runs: imports, collection, reports.
OVERHEAD = "(start and collection)"


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one entry, or one reading of the clocks."""

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            wall_seconds=self.wall_seconds + other.wall_seconds, cpu_seconds=self.cpu_seconds + other.cpu_seconds
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            wall_seconds=self.wall_seconds - other.wall_seconds, cpu_seconds=self.cpu_seconds - other.cpu_seconds
        )


class CostMeter:
    """Books the seconds between `enter` and `leave`, without those of names entered in between."""

    def __init__(self, *, spent: Cost | None = None) -> None:
        self._booked: dict[str, Cost] = {OVERHEAD: spent or Cost()}
        self._names = [OVERHEAD]
        self._read = _read_clocks()

    def enter(self, name: str) -> None:
        """Book what follows under `name`. Entering a name again adds to it."""
        self._book()
        self._names.append(name)
        self._booked.setdefault(name, Cost())

    def leave(self, name: str) -> None:
        """Return to the name that was current when `name` was entered."""
        self._book()
        left = self._names.pop()
        assert left == name, f"{name} is left while {left} is current"

    def add_cpu_seconds(self, seconds: float) -> None:
        """Book CPU seconds of another process under the current name."""
        self._booked[self._names[-1]] += Cost(cpu_seconds=seconds)

    def costs(self) -> dict[str, Cost]:
        """Everything up to now, in the order in which names were first entered."""
        self._book()
        return dict(self._booked)

    def _book(self) -> None:
        now = _read_clocks()
        self._booked[self._names[-1]] += now - self._read
        self._read = now


_active: list[CostMeter] = []


def start_meter() -> CostMeter:
    """A new meter, and the one that `add_cpu_seconds` books on until it is stopped.

    The first one of a process also books the CPU seconds since the process started.
    """
    meter = CostMeter(spent=None if _active else Cost(cpu_seconds=_read_clocks().cpu_seconds))
    _active.append(meter)
    return meter


def stop_meter(meter: CostMeter) -> None:
    """Undo `start_meter`."""
    _active.remove(meter)


def add_cpu_seconds(seconds: float) -> None:
    """Book CPU seconds of a process that is not our child under the test or fixture that runs now.

    Not for a child that this process waits for later: its seconds, and those of its own children, are booked then. Does
    nothing where no meter is active, so support code may call it from anywhere.
    """
    if _active:
        _active[-1].add_cpu_seconds(seconds)


def _read_clocks() -> Cost:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return Cost(wall_seconds=time.perf_counter(), cpu_seconds=sum(usage.ru_utime + usage.ru_stime for usage in usages))
