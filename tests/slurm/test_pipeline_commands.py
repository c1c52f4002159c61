"""What the example configurations make of the road: commands and flags that exist, without a cluster."""

import argparse
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.commands import module_of

REPOSITORY = Path(__file__).parents[2]
SUBMIT = REPOSITORY / "slurm/submit_pipeline.sh"


def dry_run(
    tmp_path: Path, configuration: str, *, check_flags: bool = False, cluster: str = "", run_dir: str = "run"
) -> subprocess.CompletedProcess[str]:
    """A dry run; text and paths of the configuration are put below `tmp_path`."""
    (tmp_path / "text.jsonl").write_text("{}\n")
    path, env = tmp_path / "run.conf", tmp_path / "env.sh"
    heldout = "((${#HELDOUT_TEXT[@]} == 0)) || HELDOUT_TEXT=(${TEXT[0]})"
    run = shlex.quote(str(tmp_path / run_dir))
    path.write_text(f"{configuration}\nRUN_DIR={run}\nTEXT=({tmp_path}/text.jsonl)\n{heldout}\n")
    # The program that checks flags must find its packages.
    here = f"PATH={Path(sys.executable).parent}:$PATH CHECK_FLAGS={'yes' if check_flags else 'no'}"
    env.write_text(f"source {REPOSITORY}/slurm/env.sh\n{here}\n{cluster}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run(
        [SUBMIT, path, "--dry-run"],
        capture_output=True,
        text=True,
        env={**environment, "MINIPLM_ENV": str(env)},
        cwd=REPOSITORY,
    )
    assert not (tmp_path / "run").exists(), "a dry run writes"
    return done


def plan(tmp_path: Path, configuration: str, *, check_flags: bool = False, cluster: str = "") -> list[list[str]]:
    """The commands of a dry run, as words."""
    done = dry_run(tmp_path, configuration, check_flags=check_flags, cluster=cluster)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("    ")]


def calls_of(planned: list[list[str]]) -> dict[str, list[str]]:
    """The words of sbatch by stage."""
    return {words[-1]: words for words in planned if words[0] == "sbatch"}


@pytest.mark.parametrize("configuration", ["docs/pipeline.conf", "examples/quickstart/pipeline.conf"])
def test_every_command_and_flag_exists(tmp_path: Path, configuration: str) -> None:
    """By the programs' own parsers, Megatron's among them."""
    tools = [
        words[1]
        for words in plan(tmp_path, f"source {REPOSITORY / configuration}", check_flags=True)
        if words[0] == "miniplm"
    ]
    assert len(tools) >= 7


def test_mistyped_flags_of_all_stages_are_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    text = (
        f"source {REPOSITORY}/docs/pipeline.conf\nSELECTION=(--ration 0.5)\nSCORING+=(--micro-batch-siz 4)\n"
        "TEACHER_MODEL=(--load-fh model)\nSTUDENT_qwen_200m+=(--miniplm-weigthing loss)\n"
    )
    done = dry_run(tmp_path, text, check_flags=True)
    assert done.returncode == 2
    assert done.stdout == ""
    faults = dict(re.findall(r"^error: stage (\S+): .*? (--\S+) is unknown: did you mean ", done.stderr, re.M))
    assert faults == {
        "score-teacher": "--load-fh",
        "score-reference": "--micro-batch-siz",
        "select": "--ration",
        "train-qwen_200m-1": "--miniplm-weigthing",
    }


CLUSTER = """
ACCOUNT=lab PARTITION=gpu QOS=gpu-high CONSTRAINT=h100 SBATCH_FLAGS=(--exclusive)
CPU_PARTITION=cpu CPU_ACCOUNT=lab-cpu
"""


def test_jobs_without_gpus_have_settings_of_their_own(tmp_path: Path) -> None:
    calls = calls_of(plan(tmp_path, f"source {REPOSITORY}/docs/pipeline.conf", cluster=CLUSTER))
    of_models = {"--account=lab", "--partition=gpu", "--qos=gpu-high", "--constraint=h100", "--exclusive"}
    for stage in ("score-teacher", "train-reference", "train-qwen_200m-1"):
        assert of_models <= set(calls[stage])
    for stage in ("preprocess-pool", "split", "select", "evaluate"):
        words = set(calls[stage])
        assert {"--account=lab-cpu", "--partition=cpu"} <= words
        assert not words & of_models
        assert not any(word.startswith(("--qos", "--gpu", "--gres", "--constraint")) for word in words)


def test_an_older_env_file_keeps_one_account_and_one_list_of_flags_for_all_jobs(tmp_path: Path) -> None:
    older = f"{CLUSTER}\nunset CPU_ACCOUNT CPU_QOS CPU_CONSTRAINT CPU_SBATCH_FLAGS"
    calls = calls_of(plan(tmp_path, f"source {REPOSITORY}/docs/pipeline.conf", cluster=older))
    assert {"--account=lab", "--partition=cpu", "--exclusive"} <= set(calls["select"])


def test_every_setting_of_the_cluster_can_be_overridden_for_a_kind_of_stage_or_for_one(tmp_path: Path) -> None:
    text = (
        f"source {REPOSITORY}/docs/pipeline.conf\nPARTITION_SCORING=scoring QOS_score_teacher= ACCOUNT_TOOLS=tools\n"
        "PARTITION_score_teacher=big CONSTRAINT_TRAINING=a100 CPUS_score_teacher=3 CPUS_select=7\n"
        'SBATCH_FLAGS_select=(--mem=3G "--comment=two words") GPU_FLAGS_train_reference=(--gres=gpu:v100:4)\n'
    )
    done = dry_run(tmp_path, text, cluster=CLUSTER)
    assert done.stderr == "", "of a known name nothing is said"
    calls = calls_of(plan(tmp_path, text, cluster=CLUSTER))
    assert {"--partition=big", "--cpus-per-task=3", "--constraint=h100"} <= set(calls["score-teacher"])
    assert not any(word.startswith("--qos") for word in calls["score-teacher"])
    assert {"--partition=scoring", "--qos=gpu-high"} <= set(calls["score-reference"])
    assert {"--gres=gpu:v100:4", "--constraint=a100", "--partition=gpu"} <= set(calls["train-reference"])
    assert not any(word.startswith("--gpus") for word in calls["train-reference"])
    assert calls["select"].index("--mem=3G") < calls["select"].index("--comment=two words")
    assert {"--account=tools", "--cpus-per-task=7"} <= set(calls["select"])


@pytest.mark.parametrize(
    ("flags", "ranks", "expected"),
    [
        ('(--gpus-per-node="$RANKS_PER_NODE")', 1, ["--gpus-per-node=1"]),
        ("(--gpus-per-node=h100:8)", 4, ["--gpus-per-node=h100:4"]),
        ("(--gres=gpu:h100:8 --cpus-per-gpu=6)", 2, ["--gres=gpu:h100:2", "--cpus-per-gpu=6"]),
        ("(--gres=gpu:16)", 4, ["--gres=gpu:8"]),
        ("(--gpus-per-task=1)", 4, ["--gpus-per-task=1"]),
        ("(--gpus=16)", 8, ["--gpus=16"]),
        ("()", 2, []),
        ("(--gpus=8)", 1, None),
        ("(--gres=gpu)", 2, None),
        ("(--gpus-per-node=2)", 3, None),
    ],
)
def test_a_stage_asks_for_the_gpus_of_its_ranks(
    tmp_path: Path, flags: str, ranks: int, expected: list[str] | None
) -> None:
    text = f"source {REPOSITORY}/docs/pipeline.conf\nRANKS_train_reference={ranks}\n"
    done = dry_run(tmp_path, text, cluster=f"GPU_FLAGS={flags}")
    if expected is None:
        assert done.returncode == 2
        assert f"stage train-reference has {ranks} ranks per node" in done.stderr
        assert "GPU_FLAGS_train_reference" in done.stderr
        return
    words = shlex.split(next(line for line in done.stdout.splitlines() if line.endswith(" train-reference")))
    assert [word for word in words if "gpu" in word and not word.startswith("--output=")] == expected
    assert f"--ntasks-per-node={ranks}" in words


def test_a_setting_for_no_stage_is_told(tmp_path: Path) -> None:
    done = dry_run(tmp_path, f"source {REPOSITORY}/docs/pipeline.conf\nTIME_slect=1:00 NODES_select=1\n")
    assert done.returncode == 0
    assert done.stderr == "note: TIME_slect is for no stage of this configuration\n"


@pytest.mark.parametrize("name", ["my run", "tab\there", "line\n", "job-%j", "back\\slash", "a|b"])
def test_a_run_directory_that_megatron_or_slurm_cannot_read_is_refused(tmp_path: Path, name: str) -> None:
    done = dry_run(tmp_path, f"source {REPOSITORY}/docs/pipeline.conf", run_dir=name)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "RUN_DIR=" in line
    assert "has a blank, control character" in line


def test_an_array_that_the_cluster_does_not_take_is_refused_in_a_dry_run_too(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\necho 'MaxArraySize            = 101'\n")
    scontrol.chmod(0o755)
    text = f"source {REPOSITORY}/docs/pipeline.conf\nNUM_SHARDS="
    cluster = f"PATH={tmp_path}:$PATH"
    assert dry_run(tmp_path, f"{text}101", cluster=cluster).returncode == 0
    done = dry_run(tmp_path, f"{text}102", cluster=cluster)
    assert done.returncode == 2
    assert "stage preprocess-pool is an array of 102 tasks, this cluster takes 101 (MaxArraySize)" in done.stderr


def test_every_stage_is_submitted_with_its_script_and_size(tmp_path: Path) -> None:
    text = f"source {REPOSITORY}/docs/pipeline.conf\nNODES_score_teacher=4 TIME_select=10\n"
    calls = calls_of(plan(tmp_path, text))
    assert all(Path(words[-3]).is_file() for words in calls.values())
    assert "--nodes=4" in calls["score-teacher"]
    assert "--nodes=1" in calls["score-reference"]
    assert "--time=10" in calls["select"]
    assert "--array=0-99" in calls["preprocess-pool"]
    assert "--dependency=singleton,afterok:JOB_score-teacher,afterok:JOB_score-reference" in calls["select"]
    for student in ("train-qwen_200m-1", "train-qwen_500m-1"):
        assert "--dependency=singleton,afterok:JOB_select" in calls[student], "students fan out from one selection"


@pytest.mark.parametrize(
    ("model", "has_tokenizer"), [("--load ckpt --use-checkpoint-args", True), ("--load-hf model", False)]
)
def test_a_checkpoint_is_scored_with_the_tokenizer_of_the_run(tmp_path: Path, model: str, has_tokenizer: bool) -> None:
    text = f"source {REPOSITORY}/docs/pipeline.conf\nTEACHER_MODEL=({model})\nTOKENIZER=(--tokenizer-type X)\n"
    (score,) = [words for words in plan(tmp_path, text) if words[2:4] == model.split()[:2]]
    assert ("--tokenizer-type" in score) == has_tokenizer


EVALUATION = """
SEEDS=(1 2)
EVALUATION_LM=(--seq-length 1024 --micro-batch-size 16 --bf16)
EVALUATION_TASKS=(--tasks hellaswag)
"""


def test_students_are_evaluated_one_by_one_before_they_are_compared(tmp_path: Path) -> None:
    """With the run's tokenizer and held-out text, on GPUs, into the student's own directory."""
    text = f"source {REPOSITORY}/docs/pipeline.conf\nHELDOUT_TEXT=(some)\nTOKENIZER=(--tokenizer-type X)\n{EVALUATION}"
    planned = plan(tmp_path, text)
    calls = calls_of(planned)
    students = [f"qwen_{size}-{seed}" for size in ("200m", "500m") for seed in (1, 2)]
    compared = "singleton," + ",".join(f"afterok:JOB_evaluate-{student}" for student in students)
    assert f"--dependency={compared}" in calls["evaluate"]
    for student in students:
        words = calls[f"evaluate-{student}"]
        assert f"--dependency=singleton,afterok:JOB_train-{student},afterok:JOB_preprocess-heldout" in words
        assert {"--gpus-per-node=8", "--nodes=1", "--time=8:00:00"} <= set(words), "as a scoring job"
        assert words[-3].endswith("slurm/evaluate.sbatch")
    directory = tmp_path / "run/student-qwen_500m-2"
    model = [*("--load", str(directory / "checkpoint"), "--use-checkpoint-args"), *("--tokenizer-type", "X")]
    lm, tasks = ([words[1:] for words in planned if words[1] == f"evaluate-{what}"][-1] for what in ("lm", "tasks"))
    assert lm == [
        *("evaluate-lm", *model, "--seq-length", "1024", "--micro-batch-size", "16", "--bf16"),
        *("--corpus", str(tmp_path / "run/data/heldout_text_chunk")),
        *("--scores", str(directory / "evaluation/lm"), "--json", str(directory / "evaluation/lm.json")),
    ]
    assert tasks == [
        *("evaluate-tasks", *model, "--tasks", "hellaswag"),
        *("--results", str(directory / "evaluation/tasks"), "--json", str(directory / "evaluation/tasks.json")),
    ]
    for words in (lm, tasks):
        module = module_of(words[0])
        unknown = module.add_arguments(argparse.ArgumentParser()).parse_known_args(words[1:])[1]
        megatrons = {
            "--load",
            "--use-checkpoint-args",
            "--tokenizer-type",
            "--seq-length",
            "--micro-batch-size",
            "--bf16",
        }
        assert {word for word in unknown if word.startswith("--")} <= megatrons


def test_evaluation_without_text_is_refused_before_anything_is_submitted(tmp_path: Path) -> None:
    path = tmp_path / "run.conf"
    path.write_text(f"source {REPOSITORY}/docs/pipeline.conf\nHELDOUT_TEXT=()\nEVALUATION_LM=(--seq-length 64)\n")
    done = subprocess.run([SUBMIT, path, "--dry-run"], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "EVALUATION_LM has nothing to evaluate on: set HELDOUT_TEXT or HELDOUT, or give it --corpus" in done.stderr
