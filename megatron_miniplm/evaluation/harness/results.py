"""Tasks -> results: one task after another, one file for each finished task, and what is made of all of them."""

import contextlib
import importlib.metadata
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts import atomic_output, digest_values, sole_writer_of_file, write_json, write_result
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, hasher
from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.evaluation.harness.task_loading import PAPER_GROUP, LoadedTasks, TaskChoice, load_tasks
from megatron_miniplm.runtime.text_table import aligned

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from megatron_miniplm.evaluation.harness.model import MegatronLM

#: Of lm_eval's results, by task; the rest is made of these.
PARTS = ("results", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
#: lm_eval gives the source of most functions of a task, of some their name and where they are in memory.
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
logger = logging.getLogger(__name__)

#: Resamplings behind the standard error of a perplexity, 2 % exact; lm_eval's own 100,000 take minutes.
BOOTSTRAP_ITERATIONS = 1000


@dataclass(frozen=True, kw_only=True)
class ModelKey:
    """What of a model decides its answers.

    Attributes:
        weights: fingerprint of the checkpoint.
        tokenizer: fingerprint, or its type.
        vocab_size: rows of the output matrix that are no padding.
        max_length: most tokens that it is fed at once.
        precision: that it computes in.
    """

    weights: str
    tokenizer: str
    vocab_size: int
    max_length: int
    precision: str


class ResultFiles:
    """`DIR/TASK-DIGEST.json`, the digest standing for the model, the task, its data and how it is asked.

    Results of other checkpoints and settings are other files: one directory serves a whole run.

    Args:
        directory: of the files.
        model: that answers.
        choice: how it is asked.

    Attributes:
        settings: model and choice, as every file tells them.
    """

    def __init__(self, directory: Path, model: ModelKey, choice: TaskChoice) -> None:
        self._directory = directory
        self.settings = {
            **vars(model),
            "num_fewshot": choice.num_fewshot,
            "limit": choice.limit,
            "lm_eval": importlib.metadata.version("lm_eval"),
        }

    def make_directory(self) -> None:
        """Find out before the first task, not after it, where nothing can be written."""
        self._directory.mkdir(parents=True, exist_ok=True)

    def path(self, task: "Task") -> Path:
        config = _ADDRESS.sub("", json.dumps(plain(task.dump_config())))
        key = {**self.settings, "task": config, "documents": _digest_documents(task)}
        name = re.sub(r"[^\w.-]", "_", task.task_name)
        return self._directory / f"{name}-{digest_values(key)[:SHORT_HEX]}.json"

    @staticmethod
    def samples_path(path: Path) -> Path:
        return path.with_suffix(".samples.jsonl")

    def write(self, path: Path, found: Mapping[str, Any]) -> None:
        """Keep a task's results for good: samples first, so that the one file means both."""
        (samples,) = found["samples"].values()
        with atomic_output(self.samples_path(path)) as stream:
            for sample in samples:
                stream.write(json.dumps(plain(sample), allow_nan=False).encode() + b"\n")
        write_json(path, {"settings": self.settings, **{part: plain(found[part]) for part in PARTS}})


def plain(value: Any) -> Any:
    """As it will be read back from JSON; what is not finite becomes a string, such as "Infinity"."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable), parse_constant=str)


def _digest_documents(task: "Task") -> str:
    digest = hasher()
    for document in task.eval_docs:
        digest.update(json.dumps(plain(document)).encode())
    return digest.hexdigest()


def merge(tasks: LoadedTasks, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Results of tasks, by name, as lm_eval writes those of one run, groups included."""
    merged: dict[str, Any] = {part: {} for part in PARTS}
    for one in found.values():
        for part in PARTS:
            merged[part].update(one[part])
    for group in tasks.groups.values():
        merged["results"][group.name] = plain(group.aggregate(merged["results"]))
        merged["versions"][group.name] = group.version
    merged["group_subtasks"] = {name: group.child_names for name, group in tasks.groups.items()}
    if PAPER_GROUP in tasks.groups:
        merged["miniplm"] = paper_mean(merged["results"], tasks.groups[PAPER_GROUP].child_names)
    return merged


def headlines(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, str, Any, Any]]:
    """(task, metric, value, standard error) of what counts: one accuracy, or all metrics of a task without one.

    The accuracy is `acc_norm` where a task has it, else `acc`: the rule of MiniPLM's release, evaluation/harness.
    """
    for name in names:
        values = {
            metric: (key, value)
            for key, value in results[name].items()
            if "," in key and not (metric := key.partition(",")[0]).endswith("_stderr")
        }
        chosen = next((metric for metric in ("acc_norm", "acc") if metric in values), None)
        for metric in [chosen] if chosen else values:
            key, value = values[metric]
            yield name, metric, value, results[name].get(f"{metric}_stderr,{key.partition(',')[2]}")


def paper_mean(results: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The plain mean of the tasks' accuracies, as the paper reports it, and its standard error."""
    rows = list(headlines(results, names))
    errors = [error for *_, error in rows]
    known = all(isinstance(error, float) for error in errors)
    return {
        "metrics": {name: metric for name, metric, *_ in rows},
        "mean_accuracy": sum(value for *_, value, _ in rows) / len(rows),
        "mean_accuracy_stderr": sum(error**2 for error in errors) ** 0.5 / len(rows) if known else None,
    }


def table(merged: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """One line a task, those of the paper's mean last."""
    # As wide as accuracies need, so that tables of different tasks look alike.
    rows = [["task".ljust(len("mean of 9")), "metric".ljust(16), "value".rjust(8), "stderr".rjust(8), "examples"]]
    for name, metric, value, error in headlines(merged["results"], names):
        count = merged["n-samples"][name]["effective"]
        rows.append([name, metric, _number(value), _number(error), f"{count:,}"])
    if (mean := merged.get("miniplm")) is not None:
        value, error = mean["mean_accuracy"], mean["mean_accuracy_stderr"]
        rows.append([f"mean of {len(mean['metrics'])}", "", _number(value), _number(error)])
    return aligned(rows, left=(0, 1))


def _number(value: Any) -> str:
    if isinstance(value, (int, float)):
        return f"{value:.4f}" if abs(value) < 1e5 else f"{value:.3g}"
    return "" if value in (None, "N/A") else str(value)


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
