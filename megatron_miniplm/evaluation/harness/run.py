"""Tasks -> results, one task after the other, each kept as soon as it is finished."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts import atomic_output, sole_writer_of_file, write_result
from megatron_miniplm.artifacts.json_files import read_json
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.evaluation.harness.results import PARTS, ResultFiles, merge, table
from megatron_miniplm.evaluation.harness.task_loading import TaskChoice, load_tasks

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from megatron_miniplm.evaluation.harness.model import MegatronLM

logger = logging.getLogger(__name__)

#: Resamplings behind the standard error of a perplexity, 2 % exact; lm_eval's own 100,000 take minutes.
BOOTSTRAP_ITERATIONS = 1000


def evaluate_tasks(
    choice: TaskChoice,
    files: ResultFiles,
    load: "Callable[[], MegatronLM]",
    *,
    json_path: Path | None,
    samples_path: Path | None,
) -> list[str]:
    """Ask what is not yet answered, on rank 0.

    Args:
        choice: the tasks.
        files: where finished tasks are kept; those that are there are not asked again.
        load: gives the model; called once all data sets are read, unless every task is finished.
        json_path: where lm_eval's results of all tasks go, None: nowhere.
        samples_path: where every example goes, with its log-likelihoods, one a line.

    Returns:
        The lines of the table.

    Raises:
        InputError: a task or its data set cannot be used.
        CorruptArtifactError: a kept file is damaged.
    """
    files.make_directory()
    tasks = load_tasks(choice)
    paths = {name: files.path(task) for name, task in tasks.tasks.items()}
    model = None
    for name, task in tasks.tasks.items():
        if paths[name].exists():
            logger.info("%s: finished before, see %s", name, paths[name])
            continue
        model = model or load()
        files.write(paths[name], _ask(model, task, choice.limit))
        logger.info("%s: finished", name)
    merged = {"settings": files.settings, **merge(tasks, {name: _read(path) for name, path in paths.items()})}
    if json_path is not None:
        write_result(json_path, merged)
    if samples_path is not None:
        _join_samples(samples_path, {name: files.samples_path(path) for name, path in paths.items()})
    return table(merged, list(tasks.tasks))


def _ask(model: "MegatronLM", task: "Task", limit: int | None) -> dict[str, Any]:
    """lm_eval's evaluation of one task."""
    from lm_eval.evaluator import evaluate

    os.environ["DISABLE_MULTIPROC"] = "1"  # lm_eval would fork a process a core from one that holds a GPU
    with contextlib.redirect_stdout(sys.stderr):
        return evaluate(
            lm=model,
            task_dict={"tasks": {task.task_name: task}, "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=BOOTSTRAP_ITERATIONS,
        )


def _read(path: Path) -> dict[str, Any]:
    remedy = "delete it, and run this again"
    found = read_json(path, what="result of a task", remedy=remedy)
    if lacking := [part for part in PARTS if part not in found]:
        raise CorruptArtifactError(f"{path} is not a valid result of a task (it has no {lacking[0]}): {remedy}")
    return {part: found[part] for part in PARTS}


def _join_samples(path: Path, parts: dict[str, Path]) -> None:
    with sole_writer_of_file(path), atomic_output(path) as stream:
        for name, part in parts.items():
            with part.open("rb") as lines:
                for line in lines:
                    stream.write(json.dumps({"task": name, **json.loads(line)}).encode() + b"\n")
