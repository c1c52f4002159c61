"""The simulation of thousands of ranks: against closed forms, against its target, and against the real claims."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import simulate_scale
from scale_model import CallCosts, Outcome, Settings, Simulation

from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.scores import ScoreStore

IDEAL: dict[str, Any] = {
    "straggler_fraction": 0.0,
    "failures_per_hour": 0.0,
    "block_spread": 0.0,
    "server_ops": 1e12,
    "round_trip_seconds": 0.0,
}


def simulate(num_ranks: int, **changes: Any) -> Outcome:
    return Simulation(Settings(num_ranks=num_ranks, **changes)).run()


def test_equal_seeds_give_equal_results() -> None:
    assert simulate(64, hours=1) == simulate(64, hours=1)
    assert asdict(simulate(64, hours=1)) != asdict(simulate(64, hours=1, seed=1))


def test_without_disturbance_all_ranks_work_all_the_time() -> None:
    outcome = simulate(64, hours=1, **IDEAL)
    assert outcome.num_blocks == 64 * 60
    assert outcome.utilisation == pytest.approx(1, abs=1e-4)
    assert outcome.wall_hours == pytest.approx(1, rel=1e-4)
    assert (outcome.num_redone, outcome.lost_fraction, outcome.num_failures) == (0, 0.0, 0)


def test_one_block_more_than_fits_costs_one_round() -> None:
    outcome = simulate(10, num_blocks=31, **IDEAL)
    assert outcome.utilisation == pytest.approx(31 / 40, abs=1e-3)
    assert outcome.tail_seconds == pytest.approx(60, abs=0.1)


def test_a_straggler_counts_with_what_it_can() -> None:
    """Of four ranks one is three times slower: three blocks a minute, and one in three minutes."""
    outcome = simulate(4, num_blocks=100, **{**IDEAL, "straggler_fraction": 0.25})
    assert outcome.wall_hours == pytest.approx(30 / 60, rel=1e-3)
    assert outcome.utilisation == pytest.approx(1, abs=1e-3)


def test_round_trips_and_a_slow_server_are_waited_for() -> None:
    far = simulate(16, hours=1, **{**IDEAL, "round_trip_seconds": 0.1})
    calls = far.claim_ops + CallCosts.PUBLISH_AND_RELEASE
    assert far.wait_seconds == pytest.approx(0.1 * calls, rel=0.05)
    assert far.utilisation == pytest.approx(60 / (60 + far.wait_seconds), abs=0.01)
    slow = simulate(16, hours=1, **{**IDEAL, "server_ops": 5.0})
    assert slow.server_busy_fraction > 0.99
    assert slow.utilisation == pytest.approx((5 - 3.2) / calls * 60 / 16, rel=0.05), "less the renewals"


def test_a_failure_loses_what_its_job_has_in_hand_and_no_more() -> None:
    changes = {"hours": 2, "failures_per_hour": 100.0}
    array = simulate(128, nodes_per_job=1, **changes)
    assert array.num_failures > 10
    assert 0 < array.num_redone <= 8 * array.num_failures
    # A block in hand is half done on average; log-normal ones at the moment of a failure are longer than the mean.
    lost_seconds = array.lost_fraction * array.wall_hours * 3600 * 128
    assert lost_seconds <= 60 * array.num_redone
    whole = simulate(128, nodes_per_job=0, **changes)
    assert 8 * whole.num_failures < whole.num_redone <= 128 * whole.num_failures
    assert whole.utilisation < array.utilisation - 0.1


def test_the_target_at_1024_ranks() -> None:
    """1 % stragglers, three times slower, and one failure an hour in 100 nodes."""
    outcome = simulate(1024)
    assert outcome.num_failures > 0
    assert outcome.utilisation >= 0.97
    assert outcome.server_busy_fraction < 0.1


def test_one_job_of_all_nodes_does_not_scale() -> None:
    assert simulate(1024, nodes_per_job=0).utilisation < 0.95


class _Calls(threading.local):
    """System calls of one thread."""

    num_ops = 0


def real_claims(directory: Path, num_workers: int, num_blocks: int, block_seconds: float) -> tuple[float, float]:
    """Utilisation and calls a claim of threads that claim through files, and sleep instead of scoring."""
    calls = _Calls()
    costs = {**dict.fromkeys(("stat", "link", "utime", "unlink", "open", "read", "fstat", "close"), 1), "scandir": 6}
    identity: dict[str, Any] = {
        "model": {},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": num_blocks}],
        "settings": {"block_sequences": 1},
    }
    store = ScoreStore.create_or_resume(directory, identity)
    (directory / "blocks").mkdir()
    claim_ops: list[int] = []

    def work() -> None:
        with Leases(store.directory) as leases:
            queue = BlockQueue(store, leases, leases.owner.name)
            before = calls.num_ops
            while (block := queue.take()) is not None:
                claim_ops.append(calls.num_ops - before)
                time.sleep(block_seconds)
                store.block_path(block).touch()
                leases.release(block)
                before = calls.num_ops

    def count(name: str, function: Any) -> Any:
        def counted(*args: Any, **flags: Any) -> Any:
            calls.num_ops += costs[name]
            return function(*args, **flags)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        for name in costs:
            patch.setattr(os, name, count(name, getattr(os, name)))
        threads = [threading.Thread(target=work) for _ in range(num_workers)]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - began
    assert len(claim_ops) == num_blocks == len(store.published_blocks())
    return num_blocks * block_seconds / (num_workers * seconds), float(np.mean(claim_ops))


def test_the_model_makes_as_many_calls_as_the_real_claims(tmp_path: Path) -> None:
    num_workers, num_blocks, block_seconds = 12, 360, 0.05
    utilisation, claim_ops = real_claims(tmp_path, num_workers, num_blocks, block_seconds)
    simulated = simulate(num_workers, num_blocks=num_blocks, block_seconds=block_seconds, **IDEAL)
    assert claim_ops == pytest.approx(simulated.claim_ops, rel=0.25)
    assert utilisation <= 1


def test_figures_for_a_script() -> None:
    command = [sys.executable, simulate_scale.__file__, "--only", "array", "--ranks", "16", "--json"]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second
    assert json.loads(first)["array"][0]["num_ranks"] == 16
