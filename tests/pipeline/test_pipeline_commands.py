"""What the example configurations make of the road: commands and flags that exist, without a cluster."""

import argparse
import importlib
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from megatron_miniplm.cli import COMMANDS, MEGATRON_PROGRAMS

REPOSITORY = Path(__file__).parents[2]
SUBMIT = REPOSITORY / "slurm/submit_pipeline.sh"


def plan(tmp_path: Path, configuration: str) -> list[list[str]]:
    """The commands of a dry run, as words; text and paths of the configuration are put below `tmp_path`."""
    (tmp_path / "text.jsonl").write_text("{}\n")
    path = tmp_path / "run.conf"
    heldout = "((${#HELDOUT_TEXT[@]} == 0)) || HELDOUT_TEXT=(${TEXT[0]})"
    path.write_text(f"{configuration}\nRUN_DIR={tmp_path}/run\nTEXT=({tmp_path}/text.jsonl)\n{heldout}\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    done = subprocess.run([SUBMIT, path, "--dry-run"], capture_output=True, text=True, env=environment, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "run").exists(), "a dry run writes"
    return [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("configuration", ["docs/pipeline.conf", "examples/quickstart/pipeline.conf"])
def test_every_command_and_flag_exists(tmp_path: Path, configuration: str) -> None:
    tools = [words[1:] for words in plan(tmp_path, f"source {REPOSITORY / configuration}") if words[0] == "miniplm"]
    assert len(tools) >= 7
    for name, *words in tools:
        if name in MEGATRON_PROGRAMS:
            assert name in {"score-corpus", "evaluate-lm", "evaluate-tasks"}
            continue
        parser = argparse.ArgumentParser()
        importlib.import_module(f"megatron_miniplm.commands.{COMMANDS[name][0]}").add_arguments(parser)
        parser.parse_args(words)


def test_every_stage_is_submitted_with_its_script_and_size(tmp_path: Path) -> None:
    text = f"source {REPOSITORY}/docs/pipeline.conf\nNODES_score_teacher=4 TIME_select=10\n"
    calls = {words[-1]: words for words in plan(tmp_path, text) if words[0] == "sbatch"}
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
EVALUATION_TASKS=(--miniplm-tasks hellaswag)
"""


def test_students_are_evaluated_one_by_one_before_they_are_compared(tmp_path: Path) -> None:
    """With the run's tokenizer and held-out text, on GPUs, into the student's own directory."""
    text = f"source {REPOSITORY}/docs/pipeline.conf\nHELDOUT_TEXT=(some)\nTOKENIZER=(--tokenizer-type X)\n{EVALUATION}"
    planned = plan(tmp_path, text)
    calls = {words[-1]: words for words in planned if words[0] == "sbatch"}
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
        *("--miniplm-corpus", str(tmp_path / "run/data/heldout_text_chunk")),
        *("--miniplm-scores", str(directory / "evaluation/lm"), "--json", str(directory / "evaluation/lm.json")),
    ]
    assert tasks == [
        *("evaluate-tasks", *model, "--miniplm-tasks", "hellaswag"),
        *("--miniplm-results", str(directory / "evaluation/tasks"), "--json", str(directory / "evaluation/tasks.json")),
    ]
    for words in (lm, tasks):
        module = importlib.import_module(f"megatron_miniplm.commands.{COMMANDS[words[0]][0]}")
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
    assert (
        "EVALUATION_LM has nothing to evaluate on: set HELDOUT_TEXT or HELDOUT, or give it --miniplm-corpus"
        in done.stderr
    )
