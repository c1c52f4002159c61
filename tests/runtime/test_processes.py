"""What this process asks of the system."""

import os
import subprocess
import sys
import threading

import pytest

from megatron_miniplm.runtime.processes import can_fork, set_encoder_threads

PROGRAM = "from megatron_miniplm.runtime.processes import can_fork; print(can_fork())"


def test_a_process_of_one_thread_can_fork() -> None:
    process = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert process.stdout == "True\n"


def test_a_process_with_another_thread_cannot_fork() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert not can_fork()
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(("num_threads", "parallelism"), [(1, "false"), (3, "true")])
def test_encoders_take_their_threads_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, num_threads: int, parallelism: str
) -> None:
    for name in ("RAYON_NUM_THREADS", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "")
    set_encoder_threads(num_threads)
    assert (os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]) == (str(num_threads), parallelism)
