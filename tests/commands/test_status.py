"""The report of a made-up run, with a script in place of squeue."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from megatron_runs import write_corpus
from score_stores import identity_of

from megatron_miniplm.artifacts.leases import Leases, server_time_ns
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool

TAG, KEY = "pile-3f2a9c", "3f2a9c"
STAGES = """\
tokenizer tokenizer 0 - tokenizer -
pool preprocess 3 tokenizer data -
train-teacher train 0 pool teacher 450
train-reference train 0 pool reference 450
score-teacher score 2 train-teacher scores -
select select 0 score-teacher,train-reference refined -
evaluate evaluate 0 select comparison -
"""
AGAIN = "run submit_pipeline.sh again: it submits only what is not finished"
MEGATRON_LINE = " [2026-11-23 06:00:00] iteration       50/     450 | elapsed time per iteration (ms): 1500.0 |\n"


class Run:
    """A run directory, written as the scripts in slurm/ do."""

    def __init__(self, directory: Path, stages: str = STAGES) -> None:
        self.books = directory / "slurm"
        self.squeue = directory.parent / "bin" / "squeue"
        rows = "".join("\t".join([*line.split(" "), KEY]) + "\n" for line in stages.splitlines())
        self.write("pipeline.tsv", f"# miniplm pipeline 1\t{TAG}\n{rows}")
        self.squeue.parent.mkdir()
        self.queue()

    def write(self, name: str, text: str) -> Path:
        path = self.books / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def queue(self, *lines: str) -> None:
        """Jobs as `stage array_job index job_id state reason`, at most one word each."""
        rows = []
        for line in lines:
            stage, array_job, index, job_id, state, reason = line.split()
            rows.append(f"{array_job}|{index}|{job_id}|{state}|N/A||{TAG}.{stage}|{reason}\n")
        self.say(f"cat <<'END'\n{''.join(rows)}END")

    def say(self, body: str) -> None:
        self.squeue.write_text(f"#!/bin/sh\n{body}\n")
        self.squeue.chmod(0o755)

    def done(self, *units: str, key: str = KEY) -> None:
        for unit in units:
            self.write(f"done/{unit}", f"{key}\n")

    def attempt(self, unit: str, job: str, *, number: str = "", end: str = "", log: str = "", node: str = "n1") -> Path:
        """One that started half an hour ago; with `end`, such as `1 failed`, it took a minute."""
        start = int(time.time()) - 1800
        number = number or f"{job.partition('_')[0]}.0"
        path = self.write(f"logs/{unit}.{number}.log", log)
        lines = f"start {start} {node} {job} {path}\n" + (f"end {start + 60} {end}\n" if end else "")
        self.write(f"attempts/{unit}/{number}", lines)
        return path


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Nothing has been done, and nothing is queued."""
    monkeypatch.chdir(tmp_path)
    run = Run(tmp_path / "run")
    monkeypatch.setenv("PATH", f"{run.squeue.parent}:/usr/bin:/bin")
    return run


@pytest.fixture
def lines(made_up: Run, capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """The report, with one space where there are more."""

    def report() -> list[str]:
        assert run_tool("status", ["run"]) == 0
        return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]

    return report


@pytest.fixture
def as_json(made_up: Run, capsys: pytest.CaptureFixture[str]) -> Callable[[], dict]:
    def report() -> dict:
        assert run_tool("status", ["run", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return report


def line_of(lines: list[str], stage: str) -> str:
    """What a stage's line says behind its name."""
    (line,) = [line for line in lines if line.startswith(f"{stage} ")]
    return line.removeprefix(f"{stage} ")


def test_before_anything_was_submitted(lines: Callable[[], list[str]]) -> None:
    found = lines()
    assert found[0] == f"{TAG} in run: 7 stages, 7 not submitted"
    assert found[1] == "STAGE STATE JOB PROGRESS LEFT STARTS"
    assert found[2:4] == ["tokenizer not submitted", "pool not submitted 0/3 tasks all 3 tasks"]
    assert found[-1] == f"next: {AGAIN}"
    assert len(found) == 10


def test_when_all_is_done(made_up: Run, lines: Callable[[], list[str]]) -> None:
    names = "tokenizer pool.0 pool.1 pool.2 train-teacher train-reference score-teacher select evaluate"
    made_up.done(*names.split())
    made_up.attempt("tokenizer", "17", end="0 done")
    found = lines()
    assert found[0] == f"{TAG} in run: 7 stages, 7 done"
    assert found[2:4] == ["tokenizer done 17 1 took 1 min on n1", "pool done 3/3 tasks"]
    assert found[-1] == "next: nothing: all stages are done"


def test_a_pipeline_on_its_way(made_up: Run, lines: Callable[[], list[str]]) -> None:
    made_up.done("tokenizer", "pool.0", "pool.1", "pool.2")
    made_up.attempt("train-teacher", "42", number="42.0", end="75 interrupted")
    log = made_up.attempt("train-teacher", "42", number="42.1", log=MEGATRON_LINE, node="node[3-4]")
    made_up.queue(
        "train-teacher 42 N/A 42 RUNNING None",
        "train-reference 43 N/A 43 PENDING Priority",
        "score-teacher 44 0 44 PENDING Dependency",
        "score-teacher 44 1 44 PENDING Dependency",
        "select 46 N/A 46 PENDING Dependency",
        "evaluate 47 N/A 47 PENDING None",
    )
    found = lines()
    assert found[0] == f"{TAG} in run: 7 stages, 2 done, 3 waiting, 1 queued, 1 running"
    expected = "running 42 50/450 iterations 10 min 2 30 min on node[3-4]; 1 interrupted before"
    assert line_of(found, "train-teacher") == expected
    assert any(line.startswith("log (written ") and line.endswith(f" s ago): {log}") for line in found)
    assert line_of(found, "train-reference") == "queued 43 Priority"
    assert line_of(found, "score-teacher") == "waiting 44 for train-teacher"
    assert line_of(found, "select") == "waiting 46 for score-teacher, train-reference"
    assert found[-1] == "next: nothing: stages run or wait for their turn"


def test_a_stage_that_failed_and_those_it_holds_back(made_up: Run, lines: Callable[[], list[str]]) -> None:
    made_up.done("tokenizer", "pool.0", "pool.1", "pool.2", "train-reference")
    said = "2026-11-23 06:00:00 0: ValueError: no such layer\nsrun: error: n1: task 0: Exited with exit code 1\n"
    for restart in range(3):
        log = made_up.attempt("train-teacher", "42", number=f"42.{restart}", end="1 failed", log=said)
    made_up.queue(
        "score-teacher 44 0 44 PENDING DependencyNeverSatisfied",
        "score-teacher 44 1 44 PENDING DependencyNeverSatisfied",
        "select 46 N/A 46 PENDING Dependency",
    )
    found = lines()
    at = found.index("train-teacher failed 42 3 exit code 1 after 1 min on n1; 2 failed before")
    assert found[at + 1] == "ValueError: no such layer"
    assert found[at + 2] == f"log: {log}"
    assert line_of(found, "score-teacher") == "held back 44 needs train-teacher"
    assert line_of(found, "evaluate") == "not submitted"
    assert found[-1] == f"next: fix what is named above, then {AGAIN}"


def test_an_array(made_up: Run, lines: Callable[[], list[str]], as_json: Callable[[], dict]) -> None:
    made_up.done("tokenizer", "pool.0")
    log = made_up.attempt("pool.1", "18_1", number="20.0", end="2 bad-input", log="error: b.jsonl has no field text\n")
    made_up.attempt("pool.2", "18_2", number="18.0", end="75 interrupted")
    made_up.queue("pool 18 2 18 PENDING BeginTime")
    found = lines()
    at = found.index("pool requeued 18 1/3 tasks 2 1 requeued, 1 failed, 1 done; 1 interrupted before")
    assert found[at + 1 : at + 5] == [
        "failed tasks: 1",
        "task 1: exit code 2 (bad input) after 1 min on n1",
        "error: b.jsonl has no field text",
        f"log: {log}",
    ]
    pool = as_json()["stages"][1]
    assert (pool["state"], pool["failed_tasks"]) == ("requeued", [1])
    assert pool["states"] == {"requeued": 1, "failed": 1, "done": 1}
    assert [unit["state"] for unit in pool["units"]] == ["done", "failed", "requeued"]


def test_many_failed_tasks_are_named_but_not_all_their_logs(made_up: Run, lines: Callable[[], list[str]]) -> None:
    made_up.write("pipeline.tsv", f"# miniplm pipeline 1\t{TAG}\npool\tpreprocess\t40\t-\tdata\t-\t{KEY}\n")
    for task in [*range(10, 20), 30]:
        made_up.attempt(f"pool.{task}", f"18_{task}", number=f"{20 + task}.0", end="2 bad-input", log="error: no\n")
    found = lines()
    assert "failed tasks: 10-19, 30" in found
    assert sum(line.startswith("task ") for line in found) == 3


def test_an_attempt_that_was_killed(made_up: Run, lines: Callable[[], list[str]]) -> None:
    oom = "slurmstepd: error: Detected 1 oom_kill event in StepId=17.0.\n"
    made_up.attempt("tokenizer", "17", log=oom)
    found = lines()
    assert line_of(found, "tokenizer") == "failed 17 1 killed without a word (memory, a lost node, scancel) on n1"
    assert oom.strip() in found


@pytest.mark.parametrize(
    ("end", "job", "line"),
    [
        ("143 cancelled", "", "cancelled 17 1 after 1 min on n1"),
        ("75 interrupted", "", "interrupted 17 1 after 1 min on n1"),
        ("1 failed", "17 N/A 17 PENDING BeginTime", "requeued 17 1 BeginTime; 1 failed before"),
        ("", "17 N/A 17 PENDING BeginTime", "requeued 17 1 BeginTime; 1 interrupted before"),
        ("75 interrupted", "17 N/A 17 PENDING JobHeldUser", "on hold 17 1 JobHeldUser"),
        ("75 interrupted", "17 N/A 17 RUNNING None", "running 17 1 starting; 1 interrupted before"),
    ],
)
def test_one_stage(made_up: Run, lines: Callable[[], list[str]], end: str, job: str, line: str) -> None:
    made_up.attempt("tokenizer", "17", end=end)
    if job:
        made_up.queue(f"tokenizer {job}")
    assert line_of(lines(), "tokenizer").startswith(line)


def test_other_settings(made_up: Run, lines: Callable[[], list[str]]) -> None:
    made_up.done("tokenizer", key="a0")
    made_up.attempt("tokenizer", "17", end="0 done")
    found = lines()
    assert line_of(found, "tokenizer") == "stale 17 1 done with other settings, to be done again"
    assert found[-1] == f"next: {AGAIN}"


def test_a_job_on_hold_must_be_released(made_up: Run, lines: Callable[[], list[str]]) -> None:
    made_up.queue("tokenizer 17 N/A 17 PENDING JobHeldUser", "train-teacher 18 N/A 18 PENDING JobHeldUser")
    assert "next: release what is on hold: scontrol release 17 (and 1 more)" in lines()


def test_scoring(made_up: Run, lines: Callable[[], list[str]], as_json: Callable[[], dict], tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]] * 4)
    store = ScoreStore.create_or_resume(tmp_path / "scores", identity_of([corpus], model="s", block_sequences=1))
    now_ns = server_time_ns(store.directory)
    for block in range(2):
        store.write_block(block, [1.0], [1])
        os.utime(store.block_path(block), ns=(0, now_ns - (1000 - block) * 10**9))
    made_up.done("train-teacher")
    made_up.attempt("score-teacher.0", "44_0", number="45.0")
    made_up.queue("score-teacher 44 0 45 RUNNING None", "score-teacher 44 1 44 PENDING Priority")
    with Leases(store.directory) as leases:
        assert leases.claim(2)
        found = lines()
        assert line_of(found, "score-teacher") == "running 44 2/4 blocks 33 min 1 1 running, 1 queued"
        progress = as_json()["stages"][4]["progress"]
    assert progress["seconds_left"] == pytest.approx(2000, rel=0.05)
    made_up.done("score-teacher")
    assert line_of(lines(), "score-teacher") == "done 44 2/4 blocks 1"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", "Unable to contact slurm"),
        (None, "there is no squeue on this machine"),
    ],
)
def test_without_slurm(
    made_up: Run, lines: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch, body: str | None, message: str
) -> None:
    made_up.done("tokenizer", "pool.0")
    made_up.attempt("train-teacher", "42", log=MEGATRON_LINE)
    if body is None:
        monkeypatch.setenv("PATH", "")
    else:
        made_up.say(body)
    found = lines()
    assert found[1].startswith("which jobs are queued or alive is not known: ")
    assert message in found[1]
    assert line_of(found, "tokenizer") == "done"
    assert line_of(found, "pool") == "not started 1/3 tasks 2 not started, 1 done"
    assert line_of(found, "train-teacher") == "unknown 42 50/450 iterations 10 min 1 started 30 min ago on n1"
    assert found[-1] == "next: ask again where squeue works: it tells which jobs run, wait or are gone"


def test_json(made_up: Run, as_json: Callable[[], dict]) -> None:
    log = made_up.attempt("tokenizer", "17", end="2 bad-input", log="error: no text\n")
    found = as_json()
    stages = found.pop("stages")
    assert found.pop("time_seconds") == pytest.approx(time.time(), abs=60)
    assert found == {
        "run_dir": "run",
        "tag": TAG,
        "squeue_error": None,
        "finished": False,
        "states": {"failed": 1, "not submitted": 6},
        "next": [f"fix what is named above, then {AGAIN}"],
    }
    assert stages[0] == {
        "name": "tokenizer",
        "kind": "tokenizer",
        "tasks": 0,
        "after": [],
        "output": "tokenizer",
        "total": None,
        "key": KEY,
        "state": "failed",
        "states": {"failed": 1},
        "failed_tasks": [],
        "progress": None,
        "num_attempts": 1,
        "num_interruptions": 0,
        "num_failures": 1,
        "units": [
            {
                "task": None,
                "state": "failed",
                "job": "17",
                "reason": None,
                "expected_start": None,
                "nodes": "n1",
                "seconds": 60.0,
                "outcome": "bad-input",
                "exit_code": 2,
                "log": str(log),
                "log_silent_seconds": None,
                "error": "error: no text",
                "num_attempts": 1,
                "num_interruptions": 0,
                "num_failures": 1,
            }
        ],
    }


def test_lines_fit_a_terminal(made_up: Run, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "node[" + ",".join(map(str, range(1, 99, 2))) + "]"
    made_up.attempt("tokenizer", "17", end="1 failed", node=nodes, log=f"error: {'x' * 300}\n")
    assert run_tool("status", ["run"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in output if "log: " not in line) == 120
    assert sum(line.endswith("...") for line in output) == 2


def test_no_pipeline(made_up: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("status", ["bin"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: bin is not the directory of a submitted pipeline: it has no slurm/pipeline")


def test_a_malformed_pipeline(made_up: Run, capsys: pytest.CaptureFixture[str]) -> None:
    made_up.write("pipeline.tsv", f"# miniplm pipeline 1\t{TAG}\npool\tpreprocess\n")
    assert run_tool("status", ["run"]) == 2
    assert capsys.readouterr().err == (
        "error: run/slurm/pipeline.tsv, line 2 has 2 columns, expected 7 between tabs (stage, kind, tasks, after, "
        "output, total, key): run submit_pipeline.sh again, it writes the file anew\n"
    )
