import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_miniplm.corpus.workers import WorkerPool
from megatron_miniplm.errors import InputError


def square(unit: int) -> tuple[int, int]:
    return unit * unit, os.getpid()


def refuse_three(unit: int) -> int:
    if unit == 3:
        raise InputError("unit 3 cannot be used")
    return unit


def die_at_three(unit: int) -> int:
    if unit == 3:
        os._exit(9)
    return unit


def test_results_come_in_order_from_other_processes() -> None:
    with WorkerPool(square, 2) as pool:
        found = list(pool.map(iter(range(20))))
        again = list(pool.map(iter(range(3))))
    assert [(unit, result[0]) for unit, result in found] == [(unit, unit * unit) for unit in range(20)]
    processes = {process for _, (_, process) in found}
    assert os.getpid() not in processes
    assert [result[0] for _, result in again] == [0, 1, 4]


@pytest.mark.parametrize("num_units", [0, 1, 5])
def test_a_single_worker_is_this_process(num_units: int) -> None:
    with WorkerPool(square, 1) as pool:
        found = list(pool.map(iter(range(num_units))))
    assert found == [(unit, (unit * unit, os.getpid())) for unit in range(num_units)]


def test_a_process_with_one_thread_forks_and_others_send_the_work(tmp_path: Path) -> None:
    program = textwrap.dedent("""\
        import os, threading
        from megatron_miniplm.corpus.workers import WorkerPool

        class Work:
            def __init__(self):
                self.is_sent = False

            def __setstate__(self, state):
                self.is_sent = True

            def __call__(self, unit):
                return self.is_sent

        def is_sent():
            with WorkerPool(Work(), 2) as pool:
                return {sent for _, sent in pool.map(range(8))}

        if __name__ == "__main__":
            forked = is_sent()
            threading.Thread(target=threading.Event().wait, daemon=True).start()
            print(forked, is_sent(), flush=True)
    """)
    path = tmp_path / "program.py"
    path.write_text(program)
    process = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == ("{False} {True}\n", "")


def test_few_units_are_on_the_way_at_once() -> None:
    taken = 0

    def units() -> Iterator[int]:
        nonlocal taken
        for unit in range(50):
            taken += 1
            yield unit

    with WorkerPool(square, 2) as pool:
        for done, _ in enumerate(pool.map(units()), start=1):
            assert taken - done <= 4


def test_an_error_of_a_unit_is_the_callers() -> None:
    with WorkerPool(refuse_three, 2) as pool, pytest.raises(InputError, match="unit 3 cannot be used"):
        list(pool.map(iter(range(10))))


def test_a_worker_that_is_killed_is_said() -> None:
    with (
        WorkerPool(die_at_three, 2) as pool,
        pytest.raises(InputError, match="give fewer --workers, or more memory"),
    ):
        list(pool.map(iter(range(10))))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent("""\
            import os, time
            from megatron_miniplm.corpus.workers import WorkerPool

            def work(unit):
                open(f"worker-{os.getpid()}", "w").close()
                time.sleep(60)

            if __name__ == "__main__":
                with WorkerPool(work, 2) as pool:
                    list(pool.map(iter(range(4))))
        """)
    )
    process = subprocess.Popen([sys.executable, str(program)], cwd=tmp_path)
    try:
        workers = _until(lambda: found if len(found := [*tmp_path.glob("worker-*")]) == 2 else None)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _until(lambda: not any(_is_running(worker.name.split("-")[1]) for worker in workers) or None)


def _is_running(pid: str) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def _until[Value](probe: Callable[[], Value | None], seconds: float = 20.0) -> Value:
    deadline = time.monotonic() + seconds
    while (value := probe()) is None:
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return value
