"""One Slurm cluster for all tests in this folder; where there is none they are skipped, or fail if CI requires it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from slurm_cluster import ClusterError, SlurmCluster

#: Set by CI, which installs Slurm: then tests that cannot run are failures.
REQUIRED = os.environ.get("MINIPLM_REQUIRE_SLURM") == "1"
RUNNING = pytest.StashKey[SlurmCluster]()


@pytest.fixture(scope="session")
def slurm_of_session(pytestconfig: pytest.Config) -> Iterator[SlurmCluster]:
    with ExitStack() as stack:
        try:
            # A node answers that a step has ended when it has. Without an answer within MessageTimeout, 5 s, slurmctld
            # asks again a minute later, when the next start of the job has a step of that number: it would be ended.
            cluster = stack.enter_context(SlurmCluster(kill_wait_seconds=3))
        except (ClusterError, OSError, subprocess.SubprocessError) as error:
            if REQUIRED:
                raise
            pytest.skip(f"no Slurm cluster: {error}; `make slurm` installs what it needs")
        pytestconfig.stash[RUNNING] = cluster
        yield cluster
        del pytestconfig.stash[RUNNING]


@pytest.fixture
def slurm(slurm_of_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """Two free nodes of 8 CPUs and 2 GPUs; afterwards, jobs that are left are cancelled and broken nodes restored."""
    yield slurm_of_session
    slurm_of_session.recover()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """What Slurm has to say belongs to the report of a test that fails."""
    report = yield
    cluster = item.config.stash.get(RUNNING, None)
    if report.failed and cluster is not None:
        report.sections.append(("Slurm", f"{cluster.queue()}\n{cluster.log_tails()}"))
    return report
