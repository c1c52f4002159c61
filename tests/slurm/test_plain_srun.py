"""Tools under a plain `srun`, without our job scripts: its tasks are the ranks."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import directory_bytes, random_sequences, score_command, write_corpus
from score_stores import write_scores
from slurm_cluster import SlurmCluster
from slurm_scoring import PATIENCE_SECONDS, SharedStore

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import main

pytestmark = pytest.mark.slow

MINIPLM = Path(sys.executable).with_name("miniplm")


def srun(slurm: SlurmCluster, *flags: str, command: list[str]) -> None:
    """Run a command as the only step of a job, on both nodes."""
    body = f"srun {shlex.join(flags)} {shlex.join(command)}"
    job = slurm.submit("--nodes=2", "--ntasks=4", script=f"#!/bin/bash\nexport OMP_NUM_THREADS=1\n{body}\n")
    slurm.wait(job, "COMPLETED", timeout_seconds=PATIENCE_SECONDS)


def test_scores(slurm: SlurmCluster, shared_store: SharedStore, tmp_path: Path) -> None:
    """Two nodes, TP2: up to rounding, the scores of one rank that our job scripts have started."""
    command = score_command(shared_store.checkpoint, [shared_store.corpus], tmp_path, "--use-checkpoint-args")
    srun(slurm, "--nodes=2", "--ntasks=2", command=[*command, "--tensor-model-parallel-size", "2"])
    store = ScoreStore.open(tmp_path)
    store.require_complete()
    scores, expected = store.read_all(), shared_store.run.read_all()
    assert np.array_equal(scores["num_tokens"], expected["num_tokens"])
    np.testing.assert_allclose(scores["nll"], expected["nll"], rtol=1e-5)


def test_selection(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Three tasks on two nodes write the files of one process."""
    corpus = write_corpus(tmp_path / "corpus", random_sequences(range(2, 90)))
    rng = np.random.default_rng(0)
    for model in ("teacher", "reference"):
        write_scores(tmp_path / model, [corpus], rng.normal(100, 10, len(corpus)).tolist())
    command = [str(MINIPLM), "difference-sampling", "--ratio", "0.5"]
    for model in ("teacher", "reference"):
        command += [f"--{model}-scores", str(tmp_path / model)]
    assert main([*command[1:], "--workers", "1", "--output", str(tmp_path / "alone")]) == 0
    srun(slurm, "--nodes=2", "--ntasks=3", command=[*command, "--output", str(tmp_path / "ranks")])
    ours, expected = (directory_bytes(tmp_path / name) for name in ("ranks", "alone"))
    blend = ours["data_args.txt"].decode().replace(f"{tmp_path}/ranks/", f"{tmp_path}/alone/")
    assert ours | {"data_args.txt": blend.encode()} == expected
