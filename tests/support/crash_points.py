"""Tools in forked processes that end, fail or wait at a chosen step of what they do to the file system.

A step is a call of `os.fsync`, `os.replace`, `os.unlink` or `os.rename`: between two of them nothing changes that
another process, or the next run, could see. The processes are forked from the rank server, which has imported
everything, Megatron too.
"""

import contextlib
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_STEPS = ("fsync", "replace", "unlink", "rename")
_PAUSED = "paused\n"
_TIMEOUT_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens before step number `step`, from 0.

    Attributes:
        action: `kill` as SIGKILL does, `fail` with ENOSPC there and at all later steps that need space, `wait` for
            `RunningTool.resume`.
        max_file_bytes: if given, no file can grow larger, as on a disk that is nearly full; there is no step then.
    """

    step: int = -1
    action: str = "kill"
    max_file_bytes: int | None = None


NO_FAULT = Fault()


class RunningTool:
    """A tool that runs in `directory`, and beside it leaves what it prints in a log, and its number of steps.

    Args:
        argv: command and flags of `miniplm`.
        log: name of the log, for two tools in one directory.
    """

    def __init__(self, argv: list[str], directory: Path, fault: Fault = NO_FAULT, *, log: str = "log") -> None:
        from megatron_runs import environment
        from rank_server import rank_server

        self._log, self._steps, self._resume = (directory.with_name(name) for name in (log, "steps", "resume"))
        self._log.unlink(missing_ok=True)
        if fault.action == "wait":
            self._resume.unlink(missing_ok=True)
            os.mkfifo(self._resume)
        places = [str(path) for path in (directory, self._log, self._steps, self._resume)]
        command = [sys.executable, __file__, json.dumps([argv, asdict(fault), *places])]
        self._process = rank_server().start(
            command, environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    @classmethod
    def run(cls, argv: list[str], directory: Path, fault: Fault = NO_FAULT, *, log: str = "log") -> "RunningTool":
        """Run a tool to its end."""
        tool = cls(argv, directory, fault, log=log)
        tool.finish()
        return tool

    def finish(self) -> int:
        """Wait for the end; the exit code, -9 if it was killed.

        Raises:
            subprocess.TimeoutExpired: it takes too long, and was killed.
        """
        with self._process as process:
            try:
                return process.wait(_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                raise

    @property
    def code(self) -> int:
        """The exit code, once it has finished."""
        assert self._process.returncode is not None
        return self._process.returncode

    @property
    def printed(self) -> str:
        """What it has printed; nothing if it was killed."""
        return self._log.read_text() if self._log.exists() else ""

    @property
    def num_steps(self) -> int:
        return int(self._steps.read_text())

    def wait_for_pause(self) -> bool:
        """Wait until it has got to the step of `wait`; False if it has ended without."""
        assert self._process.stdout is not None
        return bool(self._process.stdout.readline() == _PAUSED)

    def resume(self) -> None:
        self._resume.write_text("")

    def wait(self, seconds: float) -> None:
        """Wait for the end, but not longer."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def kill_after(self, seconds: float) -> bool:
        """SIGKILL after some time; False if it had ended before."""
        self.wait(seconds)
        self._process.kill()
        return self.finish() == -signal.SIGKILL


def _run_here(argv: list[str], fault: Fault, directory: str, log: str, steps_path: str, resume: str) -> None:
    """In the forked process."""
    os.chdir(directory)
    stream = io.StringIO()  # a file would be limited, too
    code, steps = 1, _Steps(fault, resume)
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), _limited(fault.max_file_bytes):
            for name in _STEPS:
                setattr(os, name, steps.counted(name, getattr(os, name)))
            from megatron_miniplm.cli import main

            code = main(argv)
    except BaseException:
        import traceback

        traceback.print_exc(file=stream)
    Path(steps_path).write_text(str(steps.num_done))
    Path(log).write_text(stream.getvalue())
    os._exit(code)


@contextlib.contextmanager
def _limited(max_file_bytes: int | None) -> Iterator[None]:
    if max_file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, resource.RLIM_INFINITY))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


class _Steps:
    def __init__(self, fault: Fault, resume: str) -> None:
        self.num_done = 0
        self._fault = fault
        self._resume = resume

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            fault, at = self._fault, self.num_done
            self.num_done += 1
            if at == fault.step and fault.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if at == fault.step and fault.action == "wait":
                os.write(_OUTPUT, _PAUSED.encode())
                Path(self._resume).read_text()
            if 0 <= fault.step <= at and fault.action == "fail" and name != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return step


_OUTPUT = 1  # the descriptor that `RunningTool` reads

if __name__ == "__main__":
    given_argv, given_fault, *places = json.loads(sys.argv[1])
    _run_here(given_argv, Fault(**given_fault), *places)
