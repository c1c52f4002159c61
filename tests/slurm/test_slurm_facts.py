"""What the job scripts and their tests rely on in SLURM and in the test cluster.

None of our programs runs here, so these tests run on demand: `make slurm-facts`. test_cluster.py fails when the
installed version of SLURM or the cluster's slurm.conf has changed since.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, can_have_namespaces

pytestmark = pytest.mark.slurm_facts

SUPPORT = Path(__file__).parents[1] / "support"
FAILS = "#!/bin/bash\nexit 1\n"
SUCCEEDS = "#!/bin/bash\n"
WAITS = "#!/bin/bash\nexec sleep 300\n"
REQUEUES_ITSELF = """#!/bin/bash
#SBATCH --open-mode=append
echo "attempt ${SLURM_RESTART_COUNT:-unset}"
[ -n "$SLURM_RESTART_COUNT" ] || scontrol requeue "$SLURM_JOB_ID"
"""

#: A batch script, its task, and the task's child in a session of its own (as torchrun's ranks are) tell their signals.
TELLS_SIGNALS = """#!/bin/bash
#SBATCH --open-mode=append
listen() {
    trap "echo $1 SIGUSR1" USR1
    trap "echo $1 SIGTERM; exit" TERM
    echo "$1 listens"
    while :; do sleep 0.1; done
}
export -f listen
trap 'echo batch SIGTERM' TERM
srun bash -c 'setsid bash -c "listen child" & listen task' &
srun=$!
while kill -0 $srun 2>/dev/null; do
    wait $srun
    code=$?
done
echo "srun $code, job $(squeue --noheader --jobs=$SLURM_JOB_ID --format=%T)"
"""


def submit_listeners(slurm: SlurmCluster, *arguments: str) -> str:
    """Submit TELLS_SIGNALS; returns when all of one task listen."""
    job = slurm.submit(*arguments, script=TELLS_SIGNALS)
    slurm.wait_for_output(job, "task listens")
    slurm.wait_for_output(job, "child listens")
    return job


def told(slurm: SlurmCluster, job: str) -> set[str]:
    """What a job of TELLS_SIGNALS has told since it listens, without messages of srun."""
    lines = slurm.output(job).splitlines()
    return {line for line in lines if line.startswith(("batch", "task", "child", "srun ")) and "listens" not in line}


# --- The cluster ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slurm")  # two clusters at once
@pytest.mark.parametrize("own_namespaces", [True, False])
def test_a_cluster_leaves_nothing_behind(own_namespaces: bool) -> None:
    if own_namespaces and not can_have_namespaces():
        pytest.skip("no namespaces here")
    with SlurmCluster(num_nodes=1, own_namespaces=own_namespaces) as cluster:
        job = cluster.submit(script="#!/bin/bash\nsrun hostname\n")
        assert cluster.wait(job) == "COMPLETED"
        assert cluster.output(job).strip() == ("node1" if own_namespaces else os.uname().nodename)
        cluster.wait(cluster.submit(script=WAITS), "RUNNING")
        assert processes_of(cluster.directory)
    assert not processes_of(cluster.directory)
    assert not cluster.directory.exists()


@pytest.mark.usefixtures("slurm")  # where no cluster can be had, this one cannot either
def test_a_killed_test_run_leaves_no_process_behind() -> None:
    if not can_have_namespaces():
        pytest.skip("without namespaces only the daemons are sure to end")
    run = f"""
import os, signal
from slurm_cluster import SlurmCluster
with SlurmCluster(num_nodes=1) as cluster:
    cluster.wait(cluster.submit(script={WAITS!r}), "RUNNING")
    print(cluster.directory, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = os.environ | {"PYTHONPATH": str(SUPPORT)}
    killed = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, env=environment, timeout=60)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    directory = Path(killed.stdout.strip())
    deadline = time.monotonic() + 20
    while found := processes_of(directory):
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    shutil.rmtree(directory)


def processes_of(directory: Path) -> dict[int, str]:
    """Command lines, by process id, of what runs on or for the cluster in a directory, other than zombies."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command, variables = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:  # it has ended, or is another user's
                continue
            if f"{directory}/".encode() in command + variables:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found


def test_jobs_survive_a_restart_of_the_controller(slurm: SlurmCluster) -> None:
    job = slurm.submit(script=WAITS)
    slurm.wait(job, "RUNNING")
    slurm.kill_controller()
    slurm.start_controller()
    assert slurm.state(job) == "RUNNING"
    later = slurm.submit(script=SUCCEEDS)
    assert slurm.wait(later) == "COMPLETED"


# --- Dependencies -----------------------------------------------------------------------------------------------------


def test_nothing_satisfies_the_dependency_on_a_failed_job(slurm: SlurmCluster) -> None:
    first = slurm.submit("--job-name=first", script=FAILS)
    second = slurm.submit(f"--dependency=afterok:{first}", script=SUCCEEDS)
    slurm.wait(first, "FAILED")
    slurm.wait_for(lambda: slurm.reason(second) == "DependencyNeverSatisfied", "the dependency has failed")
    slurm.wait(slurm.submit("--job-name=first", script=SUCCEEDS), "COMPLETED")
    assert slurm.state(second) == "PENDING"


def test_a_dependency_waits_for_the_last_attempt(slurm: SlurmCluster) -> None:
    first = slurm.submit(script=REQUEUES_ITSELF)
    second = slurm.submit(f"--dependency=afterok:{first}", script=SUCCEEDS)
    slurm.wait_for(lambda: slurm.show(first)["Restarts"] == "1", "the job is requeued")
    assert slurm.state(second) == "PENDING"
    assert slurm.reason(second) == "Dependency"
    assert slurm.wait(second) == "COMPLETED"
    assert slurm.state(first) == "COMPLETED"


def test_two_jobs_of_a_name_run_one_after_the_other(slurm: SlurmCluster) -> None:
    """Each has to be after another job, too: both dependencies count."""
    before = slurm.submit("--job-name=before", script=SUCCEEDS)
    options = ("--job-name=same", f"--dependency=afterok:{before},singleton")
    script = "#!/bin/bash\ndate +%s.%N\nsleep 2\ndate +%s.%N\n"
    jobs = [slurm.submit(*options, script=script) for _ in range(2)]
    assert {slurm.wait(job) for job in jobs} == {"COMPLETED"}
    times = [[float(line) for line in slurm.output(job).splitlines()] for job in jobs]
    assert times[0][1] <= times[1][0]


def test_a_job_that_never_starts_holds_up_later_ones_of_its_name(slurm: SlurmCluster) -> None:
    failed = slurm.submit(script=FAILS)
    held = slurm.submit("--job-name=same", f"--dependency=afterok:{failed},singleton", script=SUCCEEDS)
    later = slurm.submit("--job-name=same", "--dependency=singleton", script=SUCCEEDS)
    slurm.wait_for(lambda: slurm.reason(held) == "DependencyNeverSatisfied", "the dependency has failed")
    assert slurm.reason(later) == "Dependency"
    slurm.cancel(held)
    assert slurm.wait(later) == "COMPLETED"


def test_singleton_does_not_separate_the_tasks_of_one_array(slurm: SlurmCluster) -> None:
    array = slurm.submit("--array=0-1", "--dependency=singleton", script=WAITS)
    for task in range(2):
        slurm.wait(f"{array}_{task}", "RUNNING")
    assert [slurm.state(f"{array}_{task}") for task in range(2)] == ["RUNNING"] * 2


# --- Requeueing -------------------------------------------------------------------------------------------------------


def test_a_job_can_requeue_itself(slurm: SlurmCluster) -> None:
    job = slurm.submit(script=REQUEUES_ITSELF)
    slurm.wait(job, "COMPLETED")
    lines = slurm.output(job).splitlines()
    assert [line for line in lines if line.startswith("attempt")] == ["attempt unset", "attempt 1"]
    assert slurm.show(job)["Restarts"] == "1"


def test_an_exit_code_requeues_nothing(slurm: SlurmCluster) -> None:
    job = slurm.submit("--requeue", script="#!/bin/bash\nexit 75\n")
    slurm.wait(job, "FAILED")
    assert slurm.show(job)["Restarts"] == "0"
    assert slurm.show(job)["ExitCode"] == "75:0"


def test_a_cancelled_job_could_requeue_itself(slurm: SlurmCluster) -> None:
    """Hence a script has to ask whether it is still RUNNING before it does."""
    script = """#!/bin/bash
trap 'squeue --noheader --jobs=$SLURM_JOB_ID --format=%T; scontrol requeue $SLURM_JOB_ID; exit' TERM
[ -n "$SLURM_RESTART_COUNT" ] || echo waits
sleep 300 &
wait
"""
    job = slurm.submit("--open-mode=append", script=script)
    slurm.wait_for_output(job, "waits")
    slurm.cancel(job)
    slurm.wait_for(lambda: slurm.show(job)["Restarts"] == "1", "the job has requeued itself")
    assert "COMPLETING" in slurm.output(job).splitlines()
    slurm.wait(job, "PENDING")


# --- Signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_to_a_job_reaches_tasks_and_their_children_but_not_the_batch_script(slurm: SlurmCluster) -> None:
    job = submit_listeners(slurm)
    slurm.signal(job, "USR1")
    slurm.wait_for(lambda: {"task SIGUSR1", "child SIGUSR1"} <= told(slurm, job), "the signal has arrived")
    slurm.signal(job, "TERM")
    slurm.wait(job, "COMPLETED")
    assert told(slurm, job) == {
        *("task SIGUSR1", "child SIGUSR1", "task SIGTERM", "child SIGTERM"),
        "srun 0, job RUNNING",
    }


def test_cancelling_signals_the_batch_script_too(slurm: SlurmCluster) -> None:
    job = submit_listeners(slurm)
    slurm.cancel(job)
    slurm.wait(job, "CANCELLED")
    assert told(slurm, job) >= {"batch SIGTERM", "task SIGTERM", "child SIGTERM"}
    assert "job RUNNING" not in slurm.output(job)


def test_the_warning_before_the_time_limit_leaves_the_batch_script_alone(slurm: SlurmCluster) -> None:
    job = submit_listeners(slurm, "--time=1", "--signal=TERM@50")
    slurm.wait(job, "COMPLETED")
    assert told(slurm, job) == {"task SIGTERM", "child SIGTERM", "srun 0, job RUNNING"}


def test_a_preempted_job_is_warned_and_can_requeue_itself(slurm: SlurmCluster) -> None:
    script = f"{TELLS_SIGNALS}scontrol requeue $SLURM_JOB_ID\n"
    job = slurm.submit("--nodes=2", "--exclusive", script=script)
    slurm.wait_for(lambda: slurm.output(job).count("listens") == 4, "a task and a child on each node listen")
    urgent = slurm.submit("--partition=urgent", "--nodes=2", "--exclusive", script=SUCCEEDS)
    slurm.wait(urgent, "COMPLETED")
    slurm.wait(job, "PENDING", "RUNNING")
    assert slurm.show(job)["Restarts"] == "1"
    assert told(slurm, job) >= {"task SIGTERM", "child SIGTERM", "srun 0, job RUNNING"}


# --- Nodes that fail --------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(slurm_of_session: SlurmCluster) -> Iterator[SlurmCluster]:
    """A cluster that declares silent nodes down after about 20 s. Longer message timeouts would make it 30 s."""
    with SlurmCluster(slurmd_timeout_seconds=10, message_timeout_seconds=5) as cluster:
        yield cluster


def test_a_job_is_requeued_when_its_node_crashes(impatient: SlurmCluster) -> None:
    job = impatient.submit("--nodes=1", script=WAITS)
    impatient.wait(job, "RUNNING")
    lost = impatient.show(job)["NodeList"]
    impatient.crash_node(lost)
    impatient.wait_for(lambda: impatient.node_state(lost).startswith("down"), "the crash is noticed")
    impatient.wait(job, "RUNNING")
    assert impatient.show(job)["Restarts"] == "1"
    assert impatient.show(job)["NodeList"] != lost
    impatient.restore_node(lost)


def test_a_node_without_its_daemon_goes_on_and_its_srun_claims_success(impatient: SlurmCluster, tmp_path: Path) -> None:
    """So for a while two attempts of one job run, and the old one's exit code of `srun` is 0."""
    script = """#!/bin/bash
attempt=${SLURM_RESTART_COUNT:-0}
srun bash -c 'while :; do touch $0; sleep 0.1; done' "task$attempt"
echo $? >"code$attempt"
"""
    job = impatient.submit("--exclusive", script=script, cwd=tmp_path)
    old, new, code = tmp_path / "task0", tmp_path / "task1", tmp_path / "code0"
    impatient.wait_for(old.exists, "the task runs")
    node = impatient.show(job)["NodeList"]
    impatient.kill_node(node)
    impatient.wait_for(new.exists, "the requeued job runs on the other node")
    assert impatient.show(job)["NodeList"] != node
    assert code.read_text() == "0\n"
    old.unlink()
    impatient.wait_for(old.exists, "the old task goes on")
    impatient.restore_node(node)
    impatient.wait_for(lambda: time.time() - old.stat().st_mtime > 2, "the node ends what is no longer its job")
    assert impatient.state(job) == "RUNNING"
