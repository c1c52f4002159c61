"""Properties of hostile input: a few seconds each in the suite, as long as one likes on demand (`make fuzz`).

Every example has a bound of time and of memory. With `MINIPLM_FUZZ_SECONDS=600` each property draws new examples until
it has used that much CPU time, round by round, each round with a seed of its own. `MINIPLM_FUZZ_SEED` chooses the first
seed; a failure names the seed of its round.
"""

import os
import random
import re
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, settings

from megatron_miniplm.errors import MiniPLMError

EXAMPLES_VARIABLE = "MINIPLM_FUZZ_EXAMPLES"
SECONDS_VARIABLE = "MINIPLM_FUZZ_SECONDS"
SEED_VARIABLE = "MINIPLM_FUZZ_SEED"
#: Wall clock, because a reader that waits on a FIFO uses no CPU time. Generous: the machine may be busy.
MAX_EXAMPLE_SECONDS = 120
#: What one example may add to the resident memory of the process.
MAX_EXAMPLE_BYTES = 256 << 20
#: What a property may add to the address space of the process, so that a fault does not harm the machine.
_MAX_ADDRESS_BYTES = 8 << 30
_EXAMPLES_PER_ROUND = 500


@dataclass(kw_only=True)
class Tally:
    """What was tried of one format."""

    num_examples: int = 0
    cpu_seconds: float = 0.0
    most_bytes: int = 0
    first_seed: int = 0
    num_rounds: int = 0

    def __str__(self) -> str:
        return (
            f"{self.num_examples:,} examples, {self.cpu_seconds:.0f} CPU seconds, {self.num_rounds} rounds from seed "
            f"{self.first_seed}, at most {self.most_bytes / (1 << 20):.1f} MiB per example"
        )


#: By format. Properties of one format add up.
TALLIES: dict[str, Tally] = {}


def fuzz(format_name: str, num_examples: int, *, max_bytes: int = MAX_EXAMPLE_BYTES) -> Callable[[Any], Any]:
    """Decorates a property, above `@given`.

    Args:
        format_name: of the format that it damages, for the tally.
        num_examples: in the suite, unless the environment asks for more.
        max_bytes: what one example may add to the memory of the process.
    """

    def decorate(test: Any) -> Any:
        tally = TALLIES.setdefault(format_name, Tally())
        test.hypothesis.inner_test = _bounded(test.hypothesis.inner_test, tally, max_bytes)
        if (seconds := os.environ.get(SECONDS_VARIABLE)) is not None:
            return _repeated(test, tally, float(seconds))
        return settings(max_examples=int(os.environ.get(EXAMPLES_VARIABLE, num_examples)), deadline=None)(test)

    return decorate


def _bounded(inner_test: Callable[..., None], tally: Tally, max_bytes: int) -> Callable[..., None]:
    @wraps(inner_test)
    def run(*args: Any, **kwargs: Any) -> None:
        tally.num_examples += 1
        with _time_limit(MAX_EXAMPLE_SECONDS):
            before = _start_peak()
            inner_test(*args, **kwargs)
            added = _peak_bytes() - before
        tally.most_bytes = max(tally.most_bytes, added)
        assert added <= max_bytes, f"{added:,} bytes of memory, expected at most {max_bytes:,}"

    return run


def _repeated(test: Any, tally: Tally, seconds: float) -> Callable[..., None]:
    test = settings(
        max_examples=_EXAMPLES_PER_ROUND, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )(test)

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        seed = int(os.environ.get(SEED_VARIABLE, random.SystemRandom().randrange(1 << 31)))
        tally.first_seed = tally.first_seed or seed
        start, used = time.process_time(), 0.0
        with _address_limit(_MAX_ADDRESS_BYTES):
            while used < seconds:
                tally.num_rounds += 1
                try:
                    hypothesis.seed(seed)(test)(*args, **kwargs)
                except BaseException as error:
                    error.add_note(f"in the round of {SEED_VARIABLE}={seed}")
                    raise
                finally:
                    tally.cpu_seconds += time.process_time() - start - used
                    used = time.process_time() - start
                seed += 1

    return run


def summary_lines() -> list[str]:
    """One line per format that was tried."""
    return [f"fuzzed {name}: {tally}" for name, tally in sorted(TALLIES.items()) if tally.num_rounds]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise AssertionError(f"an example took more than {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def peak_bytes_of(action: Callable[[], object]) -> int:
    """What an action adds to the resident memory of the process at its peak."""
    before = _start_peak()
    action()
    return _peak_bytes() - before


@contextmanager
def _address_limit(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _start_peak() -> int:
    """Measure the peak of the resident memory anew; returns what is resident now."""
    Path("/proc/self/clear_refs").write_bytes(b"5")
    return _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None, name
    return int(found[1]) << 10


def refusal_of(action: Callable[[], object]) -> MiniPLMError | OSError | None:
    """The error meant for users with which an action ended, None if it did its work; anything else is raised.

    An OSError that names a file is meant for users: every command reports it in one line.
    """
    try:
        action()
    except MiniPLMError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return error
    except OSError as error:
        if error.filename is None:
            raise
        return error
    return None
