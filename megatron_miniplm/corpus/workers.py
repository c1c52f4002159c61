"""Units of work through worker processes, in order: what comes out does not depend on how many there are."""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Self

from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.processes import can_fork

logger = logging.getLogger(__name__)

_UNITS_AHEAD = 2  # a worker: one that it works on, one that waits for it

_work: Callable[[Any], Any] | None = None  # of a worker process


class WorkerPool[Unit, Result]:
    """Applies a function to units of work in several processes; use as a context manager.

    Memory is bounded: at most two units a worker are on the way. The processes are forked where this one has no threads
    that a fork would lose, and so share what it has loaded; elsewhere they are spawned, and get `work` sent.

    Args:
        work: the function; picklable.
        num_workers: processes; with 1, the work is done in this one.
    """

    def __init__(self, work: Callable[[Unit], Result], num_workers: int) -> None:
        self._work = work
        self._num_workers = num_workers
        self._executor: ProcessPoolExecutor | None = None

    def map(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        """Every unit with its result, in the order of the units.

        Raises:
            InputError: a worker process ended, such as for lack of memory.
        """
        return self._map_here(units) if self._executor is None else self._map_apart(self._executor, units)

    def _map_here(self, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        for unit in units:
            yield unit, self._work(unit)

    def _map_apart(self, executor: ProcessPoolExecutor, units: Iterable[Unit]) -> Iterator[tuple[Unit, Result]]:
        waiting: deque[tuple[Unit, Future[Result]]] = deque()
        try:
            for unit in units:
                waiting.append((unit, executor.submit(_do, unit)))
                if len(waiting) >= _UNITS_AHEAD * self._num_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise InputError(
                "a worker process was ended from outside, most often for lack of memory: give fewer --workers, or "
                "more memory"
            ) from None
        finally:
            for _, future in waiting:
                future.cancel()

    def __enter__(self) -> Self:
        """Start the processes, before this one opens files and starts threads."""
        global _work
        if self._num_workers > 1:
            is_forked = can_fork()
            _work = self._work  # inherited by a fork
            self._executor = ProcessPoolExecutor(
                self._num_workers,
                mp_context=multiprocessing.get_context("fork" if is_forked else "spawn"),
                initializer=_start_worker,
                initargs=(None if is_forked else self._work,),
            )
            self._executor.submit(_do_nothing).result()
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


def _start_worker(work: Callable[[Any], Any] | None) -> None:
    """In a worker process; one that was forked has the work already, and is given None."""
    global _work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.disable(logging.INFO)  # the parent has said it
    if work is not None:
        _work = work


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do_nothing() -> None:
    pass


def _do(unit: Any) -> Any:
    assert _work is not None
    return _work(unit)
