"""The whole pipeline through SLURM alone, and how a user meets it: again, with a bad line, with other settings.

With `MINIPLM_QUICKSTART_RUN=runs/quickstart`, the first test trains as long as `make quickstart` does, with two ranks a
node, and compares all its outputs with that directory. Without it, models are trained for a few iterations only.
"""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import REPOSITORY, directory_bytes
from slurm_cluster import FINISHED, ClusterError, SlurmCluster
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus

CONFIGURATION = REPOSITORY / "examples/quickstart/pipeline.conf"
SUBMIT = REPOSITORY / "slurm/submit_pipeline.sh"
#: One rank a stage and 12 iterations.
SHORT_TRAINING = "--train-iters 12 --lr-warmup-iters 2 --lr-wsd-decay-iters 4 --eval-interval 6"
SHORT = "RANKS_SCORING=1 SCORING_TEACHER=()\n" + "".join(
    f"{name}+=({SHORT_TRAINING})\n"
    for name in ("TEACHER_TRAINING", "REFERENCE_TRAINING", "STUDENT_conventional", "STUDENT_refined")
)
#: `evaluate` compares the logs; this evaluates every student's last checkpoint too.
EVALUATION = "EVALUATION_LM=(--seq-length 128 --micro-batch-size 16)\n"
STAGES = (
    *("tokenizer", "preprocess-pool", "preprocess-heldout", "split"),
    *("train-teacher", "score-teacher", "train-reference", "score-reference", "select"),
    *("train-conventional-1", "evaluate-conventional-1", "train-refined-1", "evaluate-refined-1", "evaluate"),
)


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A configuration, the directory that it fills, and the cluster."""

    slurm: SlurmCluster
    directory: Path
    configuration: Path
    environment_file: Path

    def submit(self, *flags: str) -> str:
        return self.slurm.run(
            "env", f"MINIPLM_ENV={self.environment_file}", SUBMIT, self.configuration, *flags, cwd=REPOSITORY
        )

    def miniplm(self, *arguments: str | Path) -> str:
        return self.slurm.run(Path(sys.executable).with_name("miniplm"), *arguments, cwd=REPOSITORY)

    def status(self) -> dict[str, dict[str, object]]:
        stages = json.loads(self.miniplm("status", self.directory, "--json"))["stages"]
        return {stage["name"]: stage for stage in stages}

    def jobs(self) -> dict[str, tuple[str, str]]:
        """Job and state by `<stage>` or `<stage>.<task>`, of all that Slurm remembers; the newest of a name."""
        lines = self.slurm.run(
            "squeue", "--states=all", "--array", "--noheader", "--format=%F|%K|%A|%j|%T"
        ).splitlines()
        found: dict[str, tuple[str, str]] = {}
        for line in sorted(lines, key=lambda line: int(line.split("|")[2])):
            _, task, job, name, state = line.split("|")
            tag, _, stage = name.partition(".")
            if tag == self.tag:
                found[stage if task == "N/A" else f"{stage}.{task}"] = job, state
        return found

    @property
    def tag(self) -> str:
        return (self.directory / "slurm/pipeline.tsv").read_text().split("\n")[0].split("\t")[1]

    def log(self, stage: str) -> str:
        return "\n".join(path.read_text() for path in (self.directory / "slurm/logs").glob(f"{stage}.*"))

    def wait(self, timeout_seconds: float) -> None:
        """Until every job has ended, or waits for what has failed."""

        def is_over() -> bool:
            states = {state for _, state in self.jobs().values()}
            failed = [stage for stage, (_, state) in self.jobs().items() if state in FINISHED - {"COMPLETED"}]
            assert not failed, f"{failed}: {self.log(failed[0])[-3000:]}"
            return states <= {"COMPLETED"}

        self.slurm.wait_for(is_over, "all jobs are completed", timeout_seconds)


def pipeline(slurm: SlurmCluster, directory: Path, text: str) -> Pipeline:
    configuration, environment_file = directory.with_suffix(".conf"), directory.with_suffix(".env.sh")
    environment_file.write_text(
        f"source {REPOSITORY}/examples/quickstart/env.sh\n"
        f"setup_environment() {{ export PATH={Path(sys.executable).parent}:$PATH OMP_NUM_THREADS=1; }}\n"
    )
    configuration.write_text(f"RUN_DIR={directory}\nsource {CONFIGURATION}\n{text}\n")
    return Pipeline(slurm=slurm, directory=directory, configuration=configuration, environment_file=environment_file)


def write_short_text(directory: Path) -> None:
    """Our own documentation, of which two pages are held out."""
    pages = sorted((REPOSITORY / "docs").glob("*.md"))
    directory.mkdir(parents=True)
    for name, paths in {"pool": pages[2:], "heldout": pages[:2]}.items():
        paragraphs = [text for path in paths for text in path.read_text().split("\n\n") if text.strip()]
        lines = [json.dumps({"text": text, "kind": "prose"}) for text in paragraphs]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def moments(directory: Path, stage: str) -> tuple[int, int]:
    """When the last start of a stage began and ended, seconds."""
    record = max((directory / "slurm/attempts" / stage).iterdir()).read_text()
    return int(re.findall(r"^start (\d+)", record, re.M)[-1]), int(re.findall(r"^end (\d+) 0 done", record, re.M)[-1])


def losses(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar that Megatron logged and that does not depend on the clock."""
    events = EventAccumulator(str(directory))
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if "loss" in tag or "norm" in tag]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


@pytest.mark.slow
def test_the_whole_pipeline(slurm: SlurmCluster, tmp_path: Path) -> None:
    """All stages in order, the bytes of the same commands by hand, and nothing to submit afterwards."""
    quickstart = (
        Path(os.environ["MINIPLM_QUICKSTART_RUN"]).resolve() if "MINIPLM_QUICKSTART_RUN" in os.environ else None
    )
    # At the depth of the quickstart's directory, since views hold relative paths.
    directory = (quickstart.parent if quickstart else tmp_path) / "through-slurm"
    road = pipeline(slurm, directory, f"NUM_SHARDS=3\n{EVALUATION}{'' if quickstart else SHORT}")
    if quickstart:
        build = REPOSITORY / "examples/quickstart/build_corpus.py"
        subprocess.run([sys.executable, build, "--output", directory / "text"], check=True)
    else:
        write_short_text(directory / "text")
    assert not slurm.run("squeue", "--noheader")
    plan = road.submit("--dry-run")
    assert not slurm.run("squeue", "--noheader"), "a dry run submits"
    assert not (directory / "slurm").exists(), "a dry run writes"
    assert re.findall(r"^(\S+)(?: x 3)? +to be submitted", plan, re.M) == list(STAGES)
    road.submit()
    queued = road.jobs()
    again = road.submit()
    assert road.jobs().keys() == queued.keys()
    assert len(re.findall(r"queued already|finished", again)) == len(STAGES), again
    by_hand = quickstart or make_by_hand(road, tmp_path / "by-hand")
    road.wait(1500)

    stages = road.status()
    assert list(stages) == list(STAGES)
    assert {stage["state"] for stage in stages.values()} == {"done"}
    require_order(directory)
    assert len(re.findall("finished", road.submit())) == len(STAGES)
    assert road.jobs().keys() == queued.keys(), "what is finished is submitted again"
    for student in ("conventional", "refined"):
        require_logged_loss(directory, student)
    for part in ("tokenizer", "data", "split"):
        assert bytes_of(directory / part) == bytes_of(by_hand / part), part
    if quickstart:
        require_quickstart(directory, quickstart)


def require_order(directory: Path) -> None:
    """No stage began before those that it needs had ended."""
    for line in (directory / "slurm/pipeline.tsv").read_text().splitlines()[1:]:
        stage, _, tasks, after, *_ = line.split("\t")
        if after != "-" and tasks == "0":
            needed = [
                path.name for name in after.split(",") for path in (directory / "slurm/attempts").glob(f"{name}*")
            ]
            assert moments(directory, stage)[0] >= max(moments(directory, each)[1] for each in needed)


def require_logged_loss(directory: Path, student: str) -> None:
    """`evaluate-lm` finds the loss that Megatron logged of these rows. Its context is a little shorter."""
    (found,) = json.loads((directory / f"student-{student}-1/evaluation/lm.json").read_text())["checkpoints"]
    (held_out,) = found["corpora"].values()
    lengths_N = IndexedCorpus.open(directory / "data/heldout_text_document").lengths_N
    assert held_out["num_tokens"] == (lengths_N - 1).sum()
    logged = losses(directory / f"student-{student}-1/tensorboard")["lm loss validation-heldout vs samples"][-1][1]
    assert held_out["loss_nats_per_token"] == pytest.approx(logged, rel=0.02)


def require_quickstart(directory: Path, quickstart: Path) -> None:
    """Scores, selection and losses are those of the quickstart."""
    for model in ("teacher", "reference"):
        ours, theirs = (ScoreStore.open(run / "scores" / model).read_all() for run in (directory, quickstart))
        assert np.array_equal(ours, theirs)
    assert bytes_of(directory / "refined") == bytes_of(quickstart / "refined")
    for model in ("teacher", "reference", "student-conventional-1", "student-refined-1"):
        assert losses(directory / model / "tensorboard") == losses(quickstart / model / "tensorboard"), model
    curves = [json.loads((run / "comparison/curves.json").read_text()) for run in (directory, quickstart)]
    assert curves[0] == curves[1]


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Of all files but manifests and reports (commands, times), parts of the merge, and training's indices.

    Paths of the run in `data_args.txt` are written as seen from the run.
    """
    return {
        name: content.replace(str(directory.parent).encode(), b"RUN_DIR") if name.endswith("data_args.txt") else content
        for name, content in directory_bytes(directory).items()
        if not name.startswith(("shards/", "report/")) and "manifest" not in name and "/cache/" not in name
    }


def make_by_hand(road: Pipeline, directory: Path) -> Path:
    """Tokenizer, binaries and split by the commands of the quickstart."""
    text = Path(shutil.copytree(road.directory / "text", directory / "text"))  # sidecars name it, seen from the corpus
    tokenizer = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", directory / "tokenizer")
    size = ("--type", "bpe", "--vocab-size", "2048", "--max-bytes", "4000000")
    run_here("train-tokenizer", *size, "--input", text / "pool.jsonl", "--output", directory / "tokenizer")
    for part in ("pool", "heldout"):
        prefix = ("--output-prefix", directory / "data" / part)
        run_here("preprocess-data", "--input", text / f"{part}.jsonl", *prefix, *tokenizer, "--append-eod")
    split = ("--reference-fraction", "0.35", "--output", directory / "split")
    run_here("split-reference", "--input", directory / "data/pool_text_document", *split)
    return directory


def run_here(tool: str, *arguments: str | Path) -> None:
    """Run a tool of ours in this process."""
    assert run_tool(tool, list(map(str, arguments))) == 0


def file_lines(number: int) -> list[str]:
    return [
        json.dumps({"text": f"file {number}, line {line}: a few words to train a tokenizer on"}) for line in range(400)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    (directory / "text.jsonl").write_text("\n".join(line for number in range(5) for line in file_lines(number)))
    flags = ("--type", "bpe", "--vocab-size", "300", "--input", directory / "text.jsonl")
    run_here("train-tokenizer", *flags, "--output", directory / "tokenizer")
    return directory / "tokenizer"


@pytest.fixture
def five_files(slurm: SlurmCluster, tokenizer: Path, tmp_path: Path) -> Pipeline:
    """A pipeline whose text is in five files, one a shard, and whose tokenizer exists. No line is bad yet."""
    (tmp_path / "text").mkdir()
    for number in range(5):
        write_lines(tmp_path / f"text/part{number}.jsonl.gz", file_lines(number))
    return pipeline(
        slurm,
        tmp_path / "run",
        f"NUM_SHARDS=5 SHARD_BY=files HELDOUT_TEXT=()\nTEXT=('{tmp_path}/text/*.jsonl.gz')\nTOKENIZER_TRAINING=()\n"
        f"TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model {tokenizer})",
    )


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def times(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in directory.iterdir()}


def test_a_bad_line_fails_its_own_shard_only(five_files: Pipeline, tokenizer: Path, tmp_path: Path) -> None:
    road, slurm = five_files, five_files.slurm
    bad = tmp_path / "text/part3.jsonl.gz"
    lines = gzip.decompress(bad.read_bytes()).decode().splitlines()
    write_lines(bad, [*lines[:211], lines[211][:30], *lines[212:]])
    road.submit()
    tasks = [f"preprocess-pool.{task}" for task in range(5)]
    slurm.wait_for(lambda: all(road.jobs()[task][1] in FINISHED for task in tasks), "the array has ended")
    assert [road.jobs()[task][1] for task in tasks] == ["COMPLETED"] * 3 + ["FAILED", "COMPLETED"]
    failed_job = road.jobs()[tasks[3]][0]
    assert slurm.show(failed_job)["ExitCode"] == "2:0"
    assert slurm.show(failed_job)["Restarts"] == "0", "bad input is not tried again"
    assert re.search(r"error: .*part3\.jsonl\.gz, line 212", road.log("preprocess-pool"))
    slurm.wait_for(lambda: slurm.reason(road.jobs()["split"][0]) == "DependencyNeverSatisfied", "the rest is held")
    held = {stage: job for stage, (job, state) in road.jobs().items() if state == "PENDING"}
    assert held.keys() >= {"split", "train-teacher", "score-teacher", "select", "train-refined-1", "evaluate"}
    shown = road.status()
    assert shown["preprocess-pool"]["state"] == "failed"
    assert "part3.jsonl.gz, line 212" in road.miniplm("status", road.directory)

    write_lines(bad, [*lines[:211], json.dumps({"text": "mended, and of another length"}), *lines[212:]])
    before = times(road.directory / "data/shards")
    said = road.submit()
    assert re.search(r"preprocess-pool x 5 +submitted", said)
    slurm.wait_for(lambda: road.jobs()["split"][1] == "COMPLETED", "the rest goes on")
    starts = {task: len(list((road.directory / "slurm/attempts" / task).iterdir())) for task in tasks}
    assert starts == {task: 2 if task == tasks[3] else 1 for task in tasks}, "only that shard runs again"
    assert before.items() <= times(road.directory / "data/shards").items()
    assert all(slurm.state(job) == "CANCELLED" for job in held.values()), "jobs that could never start stay queued"
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(gzip.decompress(path.read_bytes()) for path in sorted((tmp_path / "text").iterdir())))
    expected = tmp_path / "expected/pool"
    flags = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer, "--append-eod")
    run_here("preprocess-data", "--input", whole, "--output-prefix", expected, *flags)
    for suffix in (".bin", ".idx"):
        ours = road.directory / f"data/pool_text_document{suffix}"
        assert ours.read_bytes() == Path(f"{expected}_text_document{suffix}").read_bytes()


def test_what_is_submitted_twice_does_not_run_at_a_time(five_files: Pipeline, tmp_path: Path) -> None:
    """As from two login nodes, of which neither sees the jobs of the other: no lock, and yet no two writers."""
    road, slurm = five_files, five_files.slurm
    blind = tmp_path / "bin/squeue"
    blind.parent.mkdir()
    blind.write_text("#!/bin/sh\n")
    blind.chmod(0o755)
    path = f"{blind.parent}:{slurm.environment()['PATH']}"
    for _ in range(2):
        slurm.run("env", f"PATH={path}", f"MINIPLM_ENV={road.environment_file}", SUBMIT, road.configuration)
    listing = [line.split("|") for line in slurm.run("squeue", "--noheader", "--format=%F|%j").splitlines()]
    for stage in ("preprocess-pool", "split"):
        twins = sorted({job for job, name in listing if name == f"{road.tag}.{stage}"}, key=int)
        for job in twins:
            slurm.wait_for(lambda job=job: slurm.state(job) == "COMPLETED", f"{stage} is done")
        assert len(twins) == 2
        assert slurm.show(twins[0])["EndTime"] <= slurm.show(twins[1])["StartTime"]


def test_a_checkpoint_is_not_continued_with_other_settings(five_files: Pipeline) -> None:
    road = five_files
    for path in ("teacher/checkpoint", "slurm/begun"):
        (road.directory / path).mkdir(parents=True)
    (road.directory / "slurm/begun/train-teacher").write_text("0123456789abcdef\n")
    message = "teacher/checkpoint was begun with other flags, data or earlier stages than the configuration has now"
    with pytest.raises(ClusterError, match=message):
        road.submit()
    assert not road.slurm.run("squeue", "--noheader", "--states=PENDING,RUNNING")
    shutil.rmtree(road.directory / "teacher")
    road.submit("--dry-run")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TRAINNG=(--bf16)", r"TRAINNG is not known: expected one of the names in slurm/pipeline\.sh"),
        ("TEXT=(nothing/*.jsonl)", r"nothing/\*\.jsonl matches no file"),
        ("TEXT=()", "neither TEXT nor CORPUS is set"),
        ("SPLIT=()", "REFERENCE_TRAINING needs SPLIT"),
        ("TEACHER_TRAINING=()", "neither TEACHER_MODEL nor TEACHER_TRAINING is set"),
        ("STUDENTS+=(Big)", "student Big: a name has lower case letters"),
        ("STUDENTS+=(big)", r"student big has no STUDENT_big=\(Megatron flags\)"),
        ("DATA_refined=everything", r"DATA_refined=everything: expected refined \(views\), selection"),
        ("STUDENT_refined=(--train-samples 100)", "training flags without --train-iters N"),
        ("RUN_DIR=", "RUN_DIR is not set"),
    ],
)
def test_bad_configurations_are_refused_before_anything_is_submitted(
    five_files: Pipeline, text: str, message: str
) -> None:
    with open(five_files.configuration, "a") as stream:
        stream.write(f"{text}\n")
    with pytest.raises(ClusterError, match=message):
        five_files.submit()
    assert not five_files.slurm.run("squeue", "--noheader", "--states=PENDING,RUNNING")
    assert not (five_files.directory / "slurm").exists()
