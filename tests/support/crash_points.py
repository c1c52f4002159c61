"""Tools in forked processes that end, fail or wait at a chosen step of what they do to the file system.

A step is a call of `os.fsync`, `os.replace`, `os.unlink` or `os.rename`: between two of them nothing changes that
another process, or the next run, could see. The processes are forked from a server that has imported everything, so
that one costs milliseconds.
"""

import contextlib
import errno
import io
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

_STEPS = ("fsync", "replace", "unlink", "rename")
_PRELOADED = [
    "crash_points",
    "megatron_miniplm.cli",
    "megatron_miniplm.commands.preprocess_data",
    "megatron_miniplm.commands.merge_datasets",
    "megatron_miniplm.commands.convert_tokenization",
    "megatron_miniplm.commands.split_reference",
    "megatron_miniplm.commands.materialize",
    "megatron_miniplm.commands.train_tokenizer",
    "megatron_miniplm.corpus.retokenization.convert",
    "megatron_miniplm.corpus.tokenizer_training",
    "megatron_miniplm.corpus.tokenization.huggingface_encoder",
    "megatron_miniplm.indexed.materialize",
    "megatron_miniplm.selection.split",
    "tokenizers",
    "pandas",  # which pyarrow imports where it is installed
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens before step number `step`, from 0.

    Attributes:
        action: `kill` as SIGKILL does, `fail` with ENOSPC there and at all later steps that need space, `wait` for
            `Pause.resume`.
        max_file_bytes: where given, files cannot grow larger, as on a disk that is nearly full; there is no step then.
    """

    step: int = -1
    action: str = "kill"
    max_file_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """Of a process that waits: it has got to the step, and may go on."""

    reached: Event
    resume: Event


def server() -> ForkServerContext:
    """A context whose processes are forked from one that has imported the tools."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def start(
    context: ForkServerContext,
    argv: list[str],
    directory: Path,
    fault: Fault | None = None,
    pause: Pause | None = None,
    log: str = "log",
) -> ForkServerProcess:
    """Start a tool in a directory, where it leaves its output in the log and its number of steps in `steps`."""
    process = context.Process(target=_run, args=(argv, directory, fault, pause, log))
    process.start()
    return process


def finish(process: ForkServerProcess, seconds: float = 120) -> int:
    """The exit code of a process; -9 if it was killed."""
    process.join(seconds)
    assert process.exitcode is not None, "it still runs"
    return process.exitcode


def _run(argv: list[str], directory: Path, fault: Fault | None, pause: Pause | None, log: str) -> None:
    os.chdir(directory)
    stream = io.StringIO()  # a file would be limited, too
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        if fault is not None and fault.max_file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.max_file_bytes, resource.RLIM_INFINITY))
        steps = _Steps(fault, pause)
        for name in _STEPS:
            setattr(os, name, steps.counted(name, getattr(os, name)))
        from megatron_miniplm.cli import main

        code = main(argv)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path("steps").write_text(str(steps.num_done))
    Path(log).write_text(stream.getvalue())
    os._exit(code)


class _Steps:
    def __init__(self, fault: Fault | None, pause: Pause | None) -> None:
        self.num_done = 0
        self._fault = fault
        self._pause = pause

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            fault, at = self._fault, self.num_done
            self.num_done += 1
            if fault is not None and at == fault.step and fault.action == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault is not None and at == fault.step and fault.action == "wait":
                assert self._pause is not None
                self._pause.reached.set()
                assert self._pause.resume.wait(120)
            if fault is not None and 0 <= fault.step <= at and fault.action == "fail" and name != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*args, **kwargs)

        return step
