import logging
import signal
import sys
from collections.abc import Iterator
from logging import StreamHandler
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent / "support"))

from fuzzing import summary_lines
from megatron_runs import TinyRun, train_tiny_checkpoint

from megatron_miniplm.errors import STOP_SIGNALS

HANDLERS = {number: signal.getsignal(number) for number in STOP_SIGNALS}
pytest_plugins = ("cost_plugin",)

# A time limit for each example would fail on a machine that does something else as well.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in summary_lines():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A corpus and a model of 23,000 parameters that Megatron has trained on it for 4 iterations; about 4 s, once."""
    return train_tiny_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session", autouse=True)
def _flags_are_not_checked_at_every_submission() -> Iterator[None]:
    """A check costs 5 CPU seconds, in which Megatron is imported; tests/pipeline turns it on where it matters."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHECK_FLAGS", "no")
        yield


@pytest.fixture(autouse=True)
def _process_is_as_before() -> Iterator[None]:
    """A tool that runs in this process leaves its signal handlers, and a log handler for the stderr of its test.

    Processes that a later test forks would inherit the handlers: a pool that ends its workers by SIGTERM then waits for
    ever where the signal meets code that ignores exceptions.
    """
    yield
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)
    logging.root.handlers[:] = [handler for handler in logging.root.handlers if type(handler) is not StreamHandler]


@pytest.fixture(scope="session", autouse=True)
def _memory_is_given_back() -> Iterator[None]:
    """Tools that run in this process must not change how it keeps memory: other tests measure it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("megatron_miniplm.runtime.processes.keep_freed_memory", lambda: None)
        yield
