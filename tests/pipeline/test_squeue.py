"""What squeue says, or that it says nothing; a script takes its place."""

from pathlib import Path

import pytest

from megatron_miniplm.pipeline.queue import QueuedJob, ask_squeue, parse_jobs
from megatron_miniplm.pipeline.records import Pipeline, Stage

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
