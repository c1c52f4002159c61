"""A smoke test of the cluster that the job scripts are tested on. Facts about SLURM itself: test_slurm_facts.py."""

import os

import pytest
from slurm_cluster import ClusterError, SlurmCluster, installed_version
from slurm_facts import RECORD, is_shown


def test_tasks_of_two_nodes_have_ranks_host_names_and_gpus(slurm: SlurmCluster) -> None:
    show = "echo $SLURM_PROCID of $SLURM_NTASKS on $(hostname): $CUDA_VISIBLE_DEVICES"
    script = f"#!/bin/bash\nscontrol show hostnames\nsrun bash -c '{show}'\n"
    job = slurm.submit("--nodes=2", "--gpus-per-node=2", script=script)
    assert slurm.wait(job) == "COMPLETED"
    names = ["node1", "node2"] if slurm.has_namespaces else [os.uname().nodename] * 2
    tasks = [f"{rank} of 2 on {name}: 0,1" for rank, name in enumerate(names)]
    assert sorted(slurm.output(job).splitlines()) == [*tasks, "node1", "node2"]


def test_what_fails_is_noticed(slurm: SlurmCluster) -> None:
    """A failed job is not taken for a running one, and a refused command says why."""
    job = slurm.submit(script="#!/bin/bash\necho the reason\nexit 1\n")
    with pytest.raises(AssertionError, match="is FAILED, not COMPLETED:\nthe reason"):
        slurm.wait(job, "COMPLETED")
    with pytest.raises(ClusterError, match=r"--nodes=9: exit code 1\n.*Node count specification invalid"):
        slurm.submit("--nodes=9", script="#!/bin/bash\n")


@pytest.mark.usefixtures("slurm_of_session")
def test_the_facts_were_shown_for_this_slurm() -> None:
    """The job scripts rely on test_slurm_facts.py, which `make slurm-facts` runs."""
    version = installed_version()
    assert is_shown(version), f"{RECORD.name} does not have {version} with this slurm.conf: run `make slurm-facts`"
