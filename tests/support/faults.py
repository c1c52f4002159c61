"""Work that is killed, or refused by the system, at any of its calls, and is then done again."""

import errno
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_miniplm.errors import MiniPLMError

#: Calls that change a file system, and `open`, which creates.
CALLS = ("open", "write", "fsync", "link", "replace", "mkdir")
#: So many places are tried in the suite; `MINIPLM_FAULT_PLACES=1000` tries all.
NUM_PLACES = int(os.environ.get("MINIPLM_FAULT_PLACES", 6))
_TIMEOUT_SECONDS = 120


@contextmanager
def counted_calls(at_call: Callable[[int], None]) -> Iterator[list[int]]:
    """Call `at_call` with its number before each of CALLS; yields a list of how many there were."""
    count = [0]
    originals = {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            count[0] += 1
            at_call(count[0])
            return originals[name](*arguments, **named)

        return call

    try:
        for name in CALLS:
            setattr(os, name, wrapped(name))
        yield count
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def in_child(work: Callable[[], object]) -> int:
    """Do work in a fork: 0 done, 2 refused as a user's error, -9 killed; anything else is a bug and printed."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(_TIMEOUT_SECONDS)
            work()
            code = 0
        except (MiniPLMError, OSError):  # `cli.run_tool` prints one line for both
            code = 2
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def faults(work: Callable[[], object], num_calls: int) -> Iterator[tuple[str, int]]:
    """Do work in children that end at evenly spaced calls in each way; yields how, and the exit code."""
    for place in places(num_calls):
        for name, act in (("killed", _kill), ("no space", _refuse(errno.ENOSPC)), ("I/O error", _refuse(errno.EIO))):

            def disturbed(place: int = place, act: Callable[[], None] = act) -> None:
                with counted_calls(lambda number: act() if number == place else None):
                    work()

            yield f"{name} at call {place} of {num_calls}", in_child(disturbed)
    for num_bytes in (0, 100, 300):

        def without_space(num_bytes: int = num_bytes) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))
            work()

        yield f"no file longer than {num_bytes} bytes", in_child(without_space)


def places(num_calls: int) -> list[int]:
    """Evenly spaced numbers of calls, the first and the last among them."""
    if num_calls <= NUM_PLACES:
        return list(range(1, num_calls + 1))
    return sorted({1 + round(place * (num_calls - 1) / (NUM_PLACES - 1)) for place in range(NUM_PLACES)})


def visible_bytes(directory: Path) -> dict[str, bytes]:
    """Content of all files below a directory, but for temporary ones that a killed process has left."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.name.endswith(".tmp")
    }


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse(code: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(code, os.strerror(code))

    return act
