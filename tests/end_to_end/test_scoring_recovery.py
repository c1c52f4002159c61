"""A scoring run that is killed, then told to stop, then left alone ends with the bytes of an undisturbed one."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from megatron_runs import (
    TIMEOUT_SECONDS,
    TinyRun,
    directory_bytes,
    environment,
    error_lines,
    random_sequences,
    run,
    score_command,
    write_corpus,
)

from megatron_miniplm.artifacts.scores import ScoreStore

pytestmark = pytest.mark.slow

NUM_SEQUENCES = 6000  # of 100 tokens: some 10 seconds of work in 120 blocks


def block_times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (directory / "blocks").glob("*.npy")}


def interrupt(command: list[str], directory: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run in a process group of its own and signal it once it has published two more blocks.

    Returns:
        Its exit code and stderr.
    """
    enough = len(block_times(directory)) + 2
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    try:
        while len(block_times(directory)) < enough:
            assert process.poll() is None, "the run ended before it could be interrupted: make the corpus larger"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, number)
        _, stderr = process.communicate(timeout=TIMEOUT_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, stderr


def test_killed_then_stopped_then_finished(tiny: TinyRun, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "large", random_sequences([100] * NUM_SEQUENCES))
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"

    def command(directory: Path) -> list[str]:
        return score_command(tiny.checkpoint, [corpus.prefix], directory, "--use-checkpoint-args")

    exit_code, _ = interrupt(command(disturbed), disturbed, signal.SIGKILL)
    assert exit_code == -signal.SIGKILL
    store = ScoreStore.open(disturbed)
    survived_kill = block_times(disturbed)
    assert 2 <= len(survived_kill) < store.plan.num_blocks
    for block in set(range(store.plan.num_blocks)) - set(store.missing_blocks()):
        store.read_block(block)  # whatever is visible is whole
    # What a kill in the middle of a write leaves.
    (disturbed / "blocks" / f".{store.block_path(store.missing_blocks()[0]).name}.4194304.tmp").write_bytes(b"half")

    exit_code, stderr = interrupt(command(disturbed), disturbed, signal.SIGTERM)
    assert exit_code == 75
    assert error_lines(stderr) == [
        "error: told to stop; all finished blocks are kept, the same command continues",
    ]
    survived_stop = block_times(disturbed)
    assert survived_kill.items() <= survived_stop.items()
    assert len(survived_kill) < len(survived_stop) < store.plan.num_blocks

    for directory in (disturbed, undisturbed):
        process = run(command(directory))
        assert process.returncode == 0, process.stderr[-4000:]
    assert survived_stop.items() <= block_times(disturbed).items(), "a finished block was written again"
    files = directory_bytes(disturbed)
    assert files == directory_bytes(undisturbed)
    assert {"identity.json", "manifest.json"} < files.keys()
    assert len(files) == store.plan.num_blocks + 3
