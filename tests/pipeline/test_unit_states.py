"""Every state, from marker, attempts and queue."""

import pytest

from megatron_miniplm.pipeline.queue import QueuedJob
from megatron_miniplm.pipeline.records import Attempt, Outcome
from megatron_miniplm.pipeline.states import State, array_state, liveliest, num_interruptions, unit_state

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
