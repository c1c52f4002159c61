"""What squeue says, or that it says nothing; a script takes its place."""

from pathlib import Path

import pytest

from megatron_miniplm.slurm.queue import (
    QueuedJob,
    State,
    array_state,
    ask_squeue,
    liveliest,
    num_interruptions,
    parse_jobs,
    unit_state,
)
from megatron_miniplm.slurm.records import Attempt, Outcome, Pipeline, Stage

TRAIN = Stage(name="train", kind="train", tasks=0, after=(), output=Path("x"), total=9, key="3f")
POOL = Stage(name="pool", kind="preprocess", tasks=3, after=(), output=Path("x"), total=None, key="3f")
PIPELINE = Pipeline(tag="pile-3f", stages=(POOL, TRAIN))
LINES = """\
18|2|20|RUNNING|2026-11-23T06:00:00|node1|pile-3f.pool|None
18|1|18|PENDING|N/A||pile-3f.pool|ReqNodeNotAvail, UnavailableNodes:node[1|2]
42|N/A|42|RUNNING|2026-11-23T06:00:00|node[3-4]|pile-3f.train|None
99|N/A|99|RUNNING|2026-11-23T06:00:00|node5|pile-3f.training|None
"""


@pytest.fixture
def fake_squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script to be written; it comes first in PATH."""
    path = tmp_path / "bin/squeue"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    return path


def test_jobs_by_stage_and_task(fake_squeue: Path) -> None:
    fake_squeue.write_text(f"#!/bin/sh\ncat <<'END'\nCLUSTER: here\n{LINES}END\n")
    queue = ask_squeue(PIPELINE)
    assert queue.error is None
    assert [queue.jobs_of("pile-3f.pool", POOL, task) for task in range(3)] == [
        [],
        [
            QueuedJob(
                job="18_1",
                array_job="18",
                job_id=18,
                task=1,
                name="pile-3f.pool",
                state="PENDING",
                reason="ReqNodeNotAvail, UnavailableNodes:node[1|2]",
                start=None,
                nodes=None,
            )
        ],
        [
            QueuedJob(
                job="18_2",
                array_job="18",
                job_id=20,
                task=2,
                name="pile-3f.pool",
                state="RUNNING",
                reason="None",
                start="2026-11-23T06:00:00",
                nodes="node1",
            )
        ],
    ]
    (train,) = queue.jobs_of("pile-3f.train", TRAIN, None)
    assert (train.job, train.task, train.nodes) == ("42", None, "node[3-4]")


def test_what_is_asked(fake_squeue: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_squeue.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\nenv > {tmp_path}/environment\n')
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")
    assert ask_squeue(PIPELINE).jobs == {}
    (asked,) = (tmp_path / "asked").read_text().splitlines()
    assert "--array --user=" in asked
    assert "--name=pile-3f.pool,pile-3f.train -o %F|%K|%A|%T|%S|%N|%j|%r" in asked
    assert "SQUEUE_" not in (tmp_path / "environment").read_text()


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            "echo squeue: error: DNS >&2; echo squeue: fatal: no configuration source >&2; exit 1",
            "squeue ended with exit code 1: fatal: no configuration source",
        ),
        ("exit 3", "squeue ended with exit code 3: it said nothing"),
        ("exec sleep 60", "squeue gave no answer in 0.5 s"),
    ],
)
def test_a_squeue_that_fails(fake_squeue: Path, body: str, error: str) -> None:
    fake_squeue.write_text(f"#!/bin/sh\n{body}\n")
    queue = ask_squeue(PIPELINE, timeout_seconds=0.5)
    assert (queue.is_known, queue.error, queue.jobs) == (False, error, {})


def test_no_squeue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask_squeue(PIPELINE).error == "there is no squeue on this machine"


def test_a_squeue_that_cannot_be_run(fake_squeue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_squeue.write_text("not a program")
    monkeypatch.setenv("PATH", str(fake_squeue.parent))
    assert (ask_squeue(PIPELINE).error or "").startswith("squeue cannot be run: ")


@pytest.mark.parametrize("line", ["", "slurm_load_jobs error", "JOBID|N/A|1|RUNNING|N/A||name|None", "1|2|3"])
def test_lines_of_another_kind_are_left_out(line: str) -> None:
    assert parse_jobs(line) == []


KEY = "3f"


def attempt(outcome: str | None = None, *, job_id: int = 17, restart: int = 0) -> Attempt:
    return Attempt(
        job_id=job_id,
        restart=restart,
        start_seconds=1000 + restart,
        job=str(job_id),
        outcome=None if outcome is None else Outcome(outcome),
    )


def queued(state: str, reason: str = "None", *, job_id: int = 17) -> QueuedJob:
    return QueuedJob(
        job=str(job_id),
        array_job=str(job_id),
        job_id=job_id,
        task=None,
        name="tag.stage",
        state=state,
        reason=reason,
        start=None,
        nodes=None,
    )


@pytest.mark.parametrize(
    ("marker", "attempts", "job", "state"),
    [
        (KEY, [attempt("done")], None, State.DONE),
        (KEY, [attempt("done")], queued("COMPLETING"), State.DONE),
        (KEY, [], queued("PENDING"), State.DONE),
        (None, [attempt()], queued("RUNNING"), State.RUNNING),
        (None, [], queued("CONFIGURING"), State.RUNNING),
        (None, [attempt("interrupted")], queued("RUNNING"), State.RUNNING),
        (None, [attempt()], queued("SUSPENDED"), State.RUNNING),
        (None, [attempt("bad-input")], queued("COMPLETING"), State.FAILED),
        (None, [attempt()], queued("COMPLETING"), State.RUNNING),
        (None, [attempt("interrupted")], queued("COMPLETING"), State.REQUEUED),
        (None, [], queued("PENDING", "Priority"), State.QUEUED),
        (None, [], queued("PENDING", "Resources"), State.QUEUED),
        (None, [], queued("PENDING", "JobArrayTaskLimit"), State.QUEUED),
        (None, [attempt("bad-input", job_id=9)], queued("PENDING", "Priority"), State.QUEUED),
        (None, [], queued("PENDING", "Dependency"), State.WAITING),
        (None, [], queued("PENDING", "DependencyNeverSatisfied"), State.HELD_BACK),
        (None, [attempt("interrupted")], queued("PENDING", "BeginTime"), State.REQUEUED),
        (None, [attempt("failed")], queued("PENDING", "Priority"), State.REQUEUED),
        (None, [attempt("cancelled")], queued("PENDING", "Priority"), State.REQUEUED),
        (None, [attempt()], queued("PENDING", "BeginTime"), State.REQUEUED),  # its node was lost
        (None, [attempt("failed")], queued("REQUEUE_HOLD", "JobHeldUser"), State.ON_HOLD),
        (None, [], queued("PENDING", "JobHeldAdmin"), State.ON_HOLD),
        (None, [attempt()], queued("PENDING", "launch failed requeued held"), State.ON_HOLD),
        (None, [attempt()], queued("PENDING", "JobHoldMaxRequeue"), State.ON_HOLD),
        (None, [attempt("failed")], None, State.FAILED),
        (None, [attempt("bad-input")], None, State.FAILED),
        (None, [attempt()], None, State.FAILED),  # killed
        (None, [attempt("interrupted")], None, State.INTERRUPTED),
        (None, [attempt("cancelled")], None, State.CANCELLED),
        (None, [], None, State.NOT_SUBMITTED),
        (None, [attempt("done")], None, State.NOT_SUBMITTED),  # the marker was removed
        ("a0", [attempt("done")], None, State.STALE),
        ("a0", [], None, State.STALE),
        ("a0", [attempt("done")], queued("PENDING", "Priority", job_id=18), State.QUEUED),
        ("a0", [attempt("done"), attempt("failed", restart=1)], None, State.FAILED),
    ],
)
def test_with_squeue(marker: str | None, attempts: list[Attempt], job: QueuedJob | None, state: State) -> None:
    found = unit_state(key=KEY, marker=marker, shares_marker=False, attempts=attempts, job=job, queue_is_known=True)
    assert found is state


@pytest.mark.parametrize(
    ("marker", "attempts", "state"),
    [
        (KEY, [], State.DONE),
        (None, [], State.NOT_STARTED),
        (None, [attempt()], State.UNKNOWN),
        (None, [attempt("failed")], State.FAILED),
        (None, [attempt("interrupted")], State.INTERRUPTED),
        (None, [attempt("done")], State.NOT_STARTED),
        ("a0", [], State.STALE),
    ],
)
def test_without_squeue(marker: str | None, attempts: list[Attempt], state: State) -> None:
    found = unit_state(key=KEY, marker=marker, shares_marker=False, attempts=attempts, job=None, queue_is_known=False)
    assert found is state


def test_a_worker_of_a_shared_store_is_done_before_the_store() -> None:
    found = unit_state(
        key=KEY, marker=None, shares_marker=True, attempts=[attempt("done")], job=None, queue_is_known=True
    )
    assert found is State.DONE


@pytest.mark.parametrize(
    ("attempts", "job", "state"),
    [
        ([], queued("PENDING", "None"), State.WAITING),
        ([], queued("PENDING", "Priority"), State.WAITING),
        ([attempt("interrupted")], queued("PENDING", "BeginTime"), State.REQUEUED),
        ([], queued("RUNNING"), State.RUNNING),
    ],
)
def test_a_job_at_which_slurm_has_not_looked_yet(attempts: list[Attempt], job: QueuedJob, state: State) -> None:
    found = unit_state(
        key=KEY,
        marker=None,
        shares_marker=False,
        attempts=attempts,
        job=job,
        queue_is_known=True,
        lacks_needs=True,
    )
    assert found is state


def test_the_job_that_counts() -> None:
    never = queued("PENDING", "DependencyNeverSatisfied", job_id=30)
    old, new, running = queued("PENDING", job_id=10), queued("PENDING", job_id=20), queued("RUNNING", job_id=5)
    assert liveliest([]) is None
    assert liveliest([old, never]) is old
    assert liveliest([new, old, never]) is new
    assert liveliest([new, running, never]) is running


def test_the_state_of_an_array() -> None:
    assert array_state([State.DONE, State.DONE]) is State.DONE
    assert array_state([State.DONE, State.FAILED, State.RUNNING]) is State.RUNNING
    assert array_state([State.DONE, State.FAILED, State.NOT_SUBMITTED]) is State.FAILED
    assert array_state([State.DONE, State.NOT_SUBMITTED]) is State.NOT_SUBMITTED


@pytest.mark.parametrize(
    ("outcomes", "state", "count"),
    [
        ([], State.QUEUED, 0),
        (["interrupted", "interrupted", None], State.RUNNING, 2),
        ([None, "failed", None], State.RUNNING, 1),
        ([None], State.REQUEUED, 1),
        (["cancelled"], State.REQUEUED, 1),
        (["cancelled"], State.CANCELLED, 0),
        (["interrupted"], State.INTERRUPTED, 1),
    ],
)
def test_interruptions(outcomes: list[str | None], state: State, count: int) -> None:
    attempts = [attempt(outcome, restart=restart) for restart, outcome in enumerate(outcomes)]
    assert num_interruptions(attempts, state) == count
