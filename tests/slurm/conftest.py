"""One SLURM cluster for all tests in this folder. Without SLURM they are skipped, or fail where CI requires it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from slurm_cluster import ClusterError, SlurmCluster
from slurm_scoring import SharedStore, score_by_two_jobs
from slurm_training import UndisturbedTraining, train_undisturbed

#: Set by CI, which installs SLURM: then tests that cannot run are failures.
REQUIRED = os.environ.get("MINIPLM_REQUIRE_SLURM") == "1"
RUNNING = pytest.StashKey[SlurmCluster]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Facts about SLURM itself run on demand only: `-m slurm_facts`, as in `make slurm-facts`."""
    if "slurm_facts" in config.option.markexpr:
        return
    facts = [item for item in items if item.get_closest_marker("slurm_facts")]
    if facts:
        config.hook.pytest_deselected(items=facts)
        items[:] = [item for item in items if item not in facts]


def require_slurm(stack: ExitStack, cluster: SlurmCluster) -> SlurmCluster:
    """Start a cluster; skip the test where there is no SLURM."""
    try:
        return stack.enter_context(cluster)
    except (ClusterError, OSError, subprocess.SubprocessError) as error:
        if REQUIRED:
            raise
        pytest.skip(f"no SLURM cluster: {error}; `make slurm` installs what it needs")


@pytest.fixture(scope="session")
def slurm_of_session(pytestconfig: pytest.Config) -> Iterator[SlurmCluster]:
    with ExitStack() as stack:
        cluster = require_slurm(stack, SlurmCluster())
        pytestconfig.stash[RUNNING] = cluster
        yield cluster
        del pytestconfig.stash[RUNNING]


@pytest.fixture
def slurm(slurm_of_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """Two free nodes of 8 CPUs and 2 GPUs. After the test, remaining jobs are cancelled and broken nodes restored."""
    yield slurm_of_session
    slurm_of_session.recover()


@pytest.fixture(scope="session")
def undisturbed_training(tmp_path_factory: pytest.TempPathFactory) -> UndisturbedTraining:
    """A model that one process has trained outside SLURM in one go: its losses and its checkpoint."""
    return train_undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture(scope="session")
def shared_store(
    slurm_of_session: SlurmCluster,
    undisturbed_training: UndisturbedTraining,
    tmp_path_factory: pytest.TempPathFactory,
) -> SharedStore:
    """Scores of that model by two jobs on one node."""
    directory = tmp_path_factory.mktemp("shared-store")
    return score_by_two_jobs(slurm_of_session, directory, undisturbed_training.checkpoint)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The report of a failed test contains what SLURM says."""
    report = yield
    cluster = item.config.stash.get(RUNNING, None)
    if report.failed and cluster is not None:
        report.sections.append(("SLURM", f"{cluster.queue()}\n{cluster.log_tails()}"))
    return report
