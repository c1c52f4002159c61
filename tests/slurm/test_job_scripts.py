"""What the job scripts make of an exit code, a signal, a cancellation and a lost node.

Programs are bash scripts, stub_scoring.py and stub_training.py in place of real scoring and training. Other tests show
what those do: what they refuse in tests/end_to_end/test_scoring_refusals.py, how they stop and continue in
test_scoring_survival.py and test_training_survival.py, which exit codes they leave in tests/runtime/test_launchers.py.
"""

import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from megatron_runs import REPOSITORY
from slurm_cluster import SlurmCluster
from slurm_jobs import PipelineRun, processes_of_job, program_path, write_program

SCORING, TRAINING = "score-teacher", "train-teacher"
#: What a program of the scoring stage does to complete it.
COMPLETE = 'mkdir -p "$store"; echo {} > "$store/manifest.json"\n'
SUPPORT = REPOSITORY / "tests" / "support"
#: A rank that obeys SIGTERM. (Bash cannot handle a signal that torchrun has been told to ignore.)
STOPS = f'exec "{sys.executable}" "{SUPPORT / "stub_scoring.py"}"\n'
#: Of the stub training; with half a second each it lasts longer than any test.
NUM_ITERATIONS = 600


def scoring_run(
    slurm: SlurmCluster,
    directory: Path,
    program: str,
    *,
    environment: str = "",
    programs: Iterable[Path] = (),
    **settings: str,
) -> PipelineRun:
    """A run whose `miniplm` is a bash script, with the directory of the scores in `store`."""
    own_programs = directory / "programs"
    write_program(own_programs / "miniplm", f"store=${{!#}}\n{program}")
    model = ("--load", "no-such-checkpoint")
    configuration: dict[str, str | Iterable[str | Path]] = {
        "CORPUS": ("no-such-corpus",),
        "TOKENIZER": ("--tokenizer-type", "NullTokenizer"),
        "TEACHER_MODEL": model,
        "REFERENCE_MODEL": model,
        "TIME_SCORING": "30",
        **settings,
    }
    return PipelineRun(slurm, directory, configuration, environment=environment, programs=[*programs, own_programs])


def training_run(slurm: SlurmCluster, directory: Path) -> PipelineRun:
    """A run whose training is stub_training.py."""
    configuration: Mapping[str, str | Iterable[str | Path]] = {
        "CORPUS": ("no-such-corpus",),
        "TOKENIZER": ("--tokenizer-type", "NullTokenizer"),
        "TRAINING_PROGRAM": (SUPPORT / "stub_training.py",),
        "TEACHER_TRAINING": ("--train-iters", str(NUM_ITERATIONS)),
        "REFERENCE_MODEL": ("--load", "no-such-checkpoint"),
        "RANKS_TRAINING": "1",
        "TIME_TRAINING": "30",
    }
    return PipelineRun(slurm, directory, configuration)


def stub_environment(run: PipelineRun, *, seconds: float, fence_seconds: int) -> str:
    return (
        f'export STUB_SECONDS={seconds} STUB_TRACES="{run.directory}/traces" OMP_NUM_THREADS=1\n'
        f"FENCE_SECONDS={fence_seconds}"
    )


def trace(run: PipelineRun, attempt: str, process: str = "main") -> list[float]:
    """When a process of a start of the stub training was alive."""
    path = run.directory / "traces" / f"{attempt}.{process}"
    return [float(line) for line in path.read_text().splitlines()] if path.exists() else []


# ---- how a program ends


@dataclass(frozen=True, kw_only=True)
class Ending:
    """A program, and what becomes of its job.

    Attributes:
        exit_code: as Slurm shows it.
        outcomes: of all starts.
        log: a pattern that the job's log contains.
    """

    program: str
    environment: str = ""
    ranks: int = 1
    exit_code: str
    outcomes: list[str]
    log: str = ""


ENDINGS = {
    "bad input": Ending(
        program='echo "error: the disk is full" >&2; exit 2\n',
        exit_code="2:0",
        outcomes=["bad-input"],
        log=r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d 0: error: the disk is full$",
    ),
    "bad input, and the launcher changes the code": Ending(
        program='touch "$MINIPLM_EXIT_CODES.2"; exit 1\n',
        exit_code="2:0",
        outcomes=["bad-input"],
    ),
    "an unknown launcher": Ending(
        program=COMPLETE,
        environment="LAUNCHER=mpirun",
        exit_code="2:0",
        outcomes=["bad-input"],
        log="LAUNCHER=mpirun: expected srun or torchrun",
    ),
    "one of two ranks is killed": Ending(
        program='trap "exit 1" TERM\n[ "$RANK" = 0 ] || kill -KILL $$\nwhile :; do sleep 0.1; done\n',
        environment="MAX_FAILURES=2",
        ranks=2,
        exit_code="1:0",
        outcomes=["failed", "failed"],
        log="not started again: 2 failures and 0 interruptions in a row without progress",
    ),
    "failures, each after some progress": Ending(
        program='mkdir -p "$store/blocks"; number=$(find "$store/blocks" -type f | wc -l)\n'
        f'touch "$store/blocks/$number.npy"; ((number == 2)) || exit 1\n{COMPLETE}',
        environment="MAX_FAILURES=1",
        exit_code="0:0",
        outcomes=["failed", "failed", "done"],
    ),
    "interruptions": Ending(
        program="exit 75\n",
        environment="MAX_INTERRUPTIONS=2",
        exit_code="75:0",
        outcomes=["interrupted", "interrupted"],
        log="not started again: 0 failures and 2 interruptions in a row without progress",
    ),
    "SIGTERM that Slurm has not sent": Ending(
        program="kill -TERM $$\n",
        environment="MAX_FAILURES=1",
        exit_code="1:0",
        outcomes=["failed"],
    ),
    "one of two ranks is killed, the other dies of the SIGTERM that follows": Ending(
        program='[ "$RANK" = 0 ] || kill -KILL $$\nwhile :; do sleep 0.1; done\n',
        environment="MAX_FAILURES=1",
        ranks=2,
        exit_code="1:0",
        outcomes=["failed"],
        log="not started again: 1 failures and 0 interruptions in a row without progress",
    ),
    "SIGTERM near the time limit, before the program has a handler": Ending(
        program="kill -TERM $$\n",
        environment="MAX_INTERRUPTIONS=1 STOP_SECONDS=1800",
        exit_code="75:0",
        outcomes=["interrupted"],
    ),
    "exit code 0 without all of the work": Ending(
        program="exit 0\n",
        environment="MAX_INTERRUPTIONS=1",
        exit_code="75:0",
        outcomes=["interrupted"],
    ),
}


@pytest.fixture(scope="module")
def ending_jobs(
    slurm_of_session: SlurmCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[PipelineRun, str]]]:
    """The run and the job of each ending. All jobs run at the same time: those that start again wait for seconds."""
    jobs = {}
    for name, ending in ENDINGS.items():
        directory = tmp_path_factory.mktemp("ending")
        run = scoring_run(
            slurm_of_session,
            directory,
            ending.program,
            environment=ending.environment,
            RANKS_SCORING=str(ending.ranks),
        )
        jobs[name] = run, run.submit(SCORING)
    yield jobs
    slurm_of_session.recover()


@pytest.mark.parametrize("name", ENDINGS)
def test_how_a_program_ends(
    slurm_of_session: SlurmCluster, ending_jobs: dict[str, tuple[PipelineRun, str]], name: str
) -> None:
    expected, (run, job) = ENDINGS[name], ending_jobs[name]
    slurm_of_session.wait(job)
    shown = slurm_of_session.show(job)
    is_done = expected.outcomes[-1] == "done"
    assert shown["JobState"] == ("COMPLETED" if is_done else "FAILED")
    assert shown["ExitCode"] == expected.exit_code
    assert run.outcomes(SCORING) == expected.outcomes
    assert shown["Restarts"] == str(len(expected.outcomes) - 1)
    assert run.is_done(SCORING) == is_done
    assert re.search(expected.log, slurm_of_session.output(job))


def test_a_job_after_one_that_has_failed(slurm: SlurmCluster, tmp_path: Path) -> None:
    run = scoring_run(slurm, tmp_path, 'mkdir -p "$store"; exit 2\n')
    slurm.wait(run.submit(SCORING), "FAILED")
    write_program(tmp_path / "programs" / "miniplm", f"store=${{!#}}\n{COMPLETE}")
    slurm.wait(run.submit(SCORING), "COMPLETED")
    assert run.outcomes(SCORING) == ["bad-input", "done"]
    assert run.is_done(SCORING)


# ---- how a program is started


def test_ranks_containers_and_prefixes(slurm: SlurmCluster, tmp_path: Path) -> None:
    """Tasks have the variables of torchrun's ranks, for scripts that know nothing of srun.

    They run in a container, by the flags of Pyxis: an `srun` in front of the real one removes these.
    """
    calls = tmp_path / "calls"
    write_program(
        tmp_path / "container-programs" / "srun",
        f'printf "%s\\n" "$@" >> {calls}\n'
        'for word in "$@"; do shift; [[ $word == --*container-* ]] || set -- "$@" "$word"; done\n'
        f'exec {program_path("srun")} "$@"\n',
    )
    run = scoring_run(
        slurm,
        tmp_path / "run",
        f'echo "rank $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR:$MASTER_PORT $PREFIX"\n{COMPLETE}',
        environment='CONTAINER_IMAGE="/images/our image.sqsh" CONTAINER_MOUNTS=/a:/b,/c\n'
        "CONTAINER_FLAGS=(--no-container-mount-home) COMMAND_PREFIX=(env PREFIX=prefixed)",
        programs=[tmp_path / "container-programs"],
        NODES_SCORING="2",
    )
    job = run.submit(SCORING)
    slurm.wait(job, "COMPLETED")
    ranks = [line.split() for line in re.findall(r" rank (.*)$", slurm.output(job), re.MULTILINE)]
    assert sorted(rank[:4] for rank in ranks) == [
        ["0", "4", "0", "2"],
        ["1", "4", "1", "2"],
        ["2", "4", "0", "2"],
        ["3", "4", "1", "2"],
    ]
    assert {tuple(rank[5:]) for rank in ranks} == {("prefixed",)}
    (address,) = {rank[4] for rank in ranks}
    assert re.fullmatch(r"node1:2\d{4}", address)
    words = calls.read_text().splitlines()
    for flag in (
        "--container-image=/images/our image.sqsh",
        "--container-mounts=/a:/b,/c",
        "--no-container-mount-home",
    ):
        assert words.count(flag) == 1
        assert words.index(flag) < words.index("bash")


@pytest.mark.slow
def test_torchrun_lets_its_ranks_finish(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A real torchrun on each of two nodes. It has to ignore SIGTERM: otherwise it kills its ranks 30 s later.

    The ranks' exit code 75 reaches the job, although torchrun's own is 1.
    """
    environment = "LAUNCHER=torchrun MAX_INTERRUPTIONS=1"
    run = scoring_run(slurm, tmp_path, STOPS, environment=environment, NODES_SCORING="2")
    job = run.submit(SCORING)
    ranks = [f"rank {rank} of 4 runs" for rank in range(4)]
    slurm.wait_for(lambda: all(line in slurm.output(job) for line in ranks), "all ranks run")
    launchers = processes_of_job(slurm, job, lambda words: any(word.endswith("/torchrun") for word in words))
    assert len(launchers) == 2
    for pid in launchers:
        assert {signal.SIGTERM, signal.SIGUSR1} <= ignored_signals(pid)
    run.come_near_time_limit(job)
    slurm.wait(job, "FAILED")
    assert slurm.show(job)["ExitCode"] == "75:0"
    assert run.outcomes(SCORING) == ["interrupted"]
    log = slurm.output(job)
    assert all(f"rank {rank} has stopped" in log for rank in range(4))
    assert "exitcode  : 75 " in log
    assert not re.search(r"exitcode +: -9|Signal 9|SIGKILL", log)


def ignored_signals(pid: int) -> set[int]:
    """proc(5): SigIgn is a mask."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = re.findall(r"^SigIgn:\s*([0-9a-f]+)", status, re.MULTILINE)
    return {number for number in range(1, 65) if int(mask, 16) >> (number - 1) & 1}


# ---- what others do to a job


@pytest.mark.slow
def test_requeued_by_hand_then_cancelled(slurm: SlurmCluster, tmp_path: Path) -> None:
    """A cancelled job stays cancelled, although its ranks end as before a time limit. The next job continues."""
    scoring, training = scoring_run(slurm, tmp_path / "scoring", STOPS), training_run(slurm, tmp_path / "training")
    training.configure(environment=stub_environment(training, seconds=0.5, fence_seconds=1))
    units = {SCORING: scoring, TRAINING: training}
    jobs = {stage: run.submit(stage) for stage, run in units.items()}

    def both_run(starts: int) -> bool:
        scores = slurm.output(jobs[SCORING]).count("rank 1 of 2 runs") == starts
        return scores and bool(trace(training, f"{jobs[TRAINING]}.{starts - 1}"))

    slurm.wait_for(lambda: both_run(1), "both run")
    for job in jobs.values():
        slurm.requeue(job)
    slurm.wait_for(lambda: both_run(2), "both run again")
    assert {slurm.show(job)["Restarts"] for job in jobs.values()} == {"1"}
    for stage, run in units.items():
        assert run.outcomes(stage) == ["cancelled", None]
    slurm.cancel(*jobs.values())
    for stage, run in units.items():
        slurm.wait(jobs[stage], "CANCELLED")
        slurm.wait_for(lambda: run.outcomes(stage) == ["cancelled", "cancelled"], "it is written down")  # noqa: B023
        assert not run.is_done(stage)
    write_program(tmp_path / "scoring" / "programs" / "miniplm", f"store=${{!#}}\n{COMPLETE}")
    training.configure(environment=stub_environment(training, seconds=0, fence_seconds=1))
    again = {stage: run.submit(stage) for stage, run in units.items()}
    for stage, run in units.items():
        slurm.wait(again[stage], "COMPLETED")
        shown = slurm.show(jobs[stage])
        assert (shown["JobState"], shown["Restarts"]) == ("CANCELLED", "1")
        assert run.outcomes(stage) == ["cancelled", "cancelled", "done"]
        assert run.is_done(stage)


@pytest.mark.slow
def test_a_lost_node_stops_training_before_the_next_start_begins(slurm: SlurmCluster, tmp_path: Path) -> None:
    """The node that SLURM has lost still trains and saves, while SLURM starts the job on the other node."""
    run = training_run(slurm, tmp_path)
    run.configure(environment=stub_environment(run, seconds=0.5, fence_seconds=2))
    job = run.submit(TRAINING)
    slurm.wait_for(lambda: bool(trace(run, f"{job}.0")), "it trains")
    lost = slurm.show(job)["NodeList"]
    slurm.kill_node(lost)
    slurm.declare_down(lost)
    unseen = len(trace(run, f"{job}.0"))
    slurm.wait_for(lambda: len(trace(run, f"{job}.0")) > unseen, "the lost node still trains")
    slurm.wait_for(lambda: bool(trace(run, f"{job}.1")), "the next start trains")
    assert slurm.show(job)["NodeList"] != lost
    begun = min(trace(run, f"{job}.1") + trace(run, f"{job}.1", "child"))
    ended = [max(trace(run, f"{job}.0", process)) for process in ("main", "child")]
    assert max(ended) < begun, "two starts trained at the same time"
    print(f"\nthe lost node stopped {begun - max(ended):.1f} s before the next start began to train")
    assert run.outcomes(TRAINING) == ["cancelled", None]
    attempts = [variables.get("MINIPLM_ATTEMPT") for variables in processes_of_job(slurm, job).values()]
    assert f"{job}.1" in attempts
    assert f"{job}.0" not in attempts, "a process of the first start is still alive"
