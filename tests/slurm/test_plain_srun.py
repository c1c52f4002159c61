"""Tools under a plain `srun`, without our job scripts: its tasks are the ranks."""

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import TinyRun, directory_bytes, random_sequences, run, score_command, write_corpus
from score_stores import write_scores
from slurm_cluster import SlurmCluster

from megatron_miniplm.artifacts.scores import ScoreStore

pytestmark = pytest.mark.slow

MINIPLM = Path(sys.executable).with_name("miniplm")
PATIENCE_SECONDS = 300


def srun(slurm: SlurmCluster, *flags: str, command: list[str]) -> None:
    """Run a command as the only step of a job, on both nodes."""
    body = f"srun {shlex.join(flags)} {shlex.join(command)}"
    job = slurm.submit("--nodes=2", "--ntasks=4", script=f"#!/bin/bash\nexport OMP_NUM_THREADS=1\n{body}\n")
    slurm.wait(job, "COMPLETED", timeout_seconds=PATIENCE_SECONDS)


def test_scores(slurm: SlurmCluster, tiny: TinyRun, tmp_path: Path) -> None:
    """Two nodes, TP2: bit for bit what torchrun makes of the same layout."""
    corpus = write_corpus(tmp_path / "corpus", random_sequences(range(2, 90)))
    flags = ["--use-checkpoint-args", "--tensor-model-parallel-size", "2"]
    by_torchrun = score_command(tiny.checkpoint, [corpus.prefix], tmp_path / "torchrun", *flags, num_processes=2)
    assert run(by_torchrun).returncode == 0
    by_srun = score_command(tiny.checkpoint, [corpus.prefix], tmp_path / "srun", *flags)
    srun(slurm, "--nodes=2", "--ntasks=2", command=by_srun)
    ours, expected = (ScoreStore.open(tmp_path / name) for name in ("srun", "torchrun"))
    ours.require_complete()
    assert np.array_equal(ours.read_all(), expected.read_all())


def test_selection(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Three tasks on two nodes write the files of one process."""
    corpus = write_corpus(tmp_path / "corpus", random_sequences(range(2, 90)))
    rng = np.random.default_rng(0)
    for model in ("teacher", "reference"):
        write_scores(tmp_path / model, [corpus], rng.normal(100, 10, len(corpus)).tolist())
    command = [str(MINIPLM), "difference-sampling", "--ratio", "0.5"]
    for model in ("teacher", "reference"):
        command += [f"--{model}-scores", str(tmp_path / model)]
    alone = [*command, "--processes", "1", "--output", str(tmp_path / "alone")]
    assert run(alone).returncode == 0
    srun(slurm, "--nodes=2", "--ntasks=3", command=[*command, "--output", str(tmp_path / "ranks")])
    ours, expected = (directory_bytes(tmp_path / name) for name in ("ranks", "alone"))
    blend = ours["data_args.txt"].decode().replace(f"{tmp_path}/ranks/", f"{tmp_path}/alone/")
    assert ours | {"data_args.txt": blend.encode()} == expected
