"""Names -> lm_eval's tasks with their data sets, before a model is loaded."""

import difflib
import fnmatch
import logging
import os
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.runtime.requirements import missing

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

PAPER_GROUP = "miniplm-paper"
OUR_TASKS = Path(__file__).with_name("tasks")
#: Where lm_eval keeps the paper's tasks. To index all 14,000 of its task files takes 10 seconds or more.
PAPER_DIRECTORIES = ("arc", "hellaswag", "lambada", "openbookqa", "piqa", "siqa", "winogrande")
#: Of lm_eval, to draw the examples of few-shot contexts.
FEWSHOT_SEED = 1234
GENERATED = "generate_until"


@dataclass(frozen=True, kw_only=True)
class TaskChoice:
    """What is asked.

    Attributes:
        names: of tasks, groups and tags, with `*` for many, or paths of task files.
        include_dirs: task files of the user, which go before lm_eval's.
        num_fewshot: examples in the context; None: the task's own number, 0 if it has none.
        limit: first examples of each task; None: all.
    """

    names: tuple[str, ...]
    include_dirs: tuple[Path, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class LoadedTasks:
    """Tasks by name, and the groups that they came in, parents before their children."""

    tasks: "dict[str, Task]"
    groups: "dict[str, Group]"


def require_lm_eval() -> None:
    """Raise `MissingPackageError` where lm_eval is not installed; imports nothing."""
    if find_spec("lm_eval") is None:
        raise missing("lm_eval")


def stay_offline() -> None:
    """Let neither `datasets` nor the hub's client ask the network; call it before either is imported."""
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"


def load_tasks(choice: TaskChoice) -> LoadedTasks:
    """Find the tasks and read their data sets.

    Raises:
        InputError: a name that nobody knows, a data set that is not here, or a task that wants generated text.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every default that a task file relies on
    manager, names = _find(choice)
    try:
        loaded = manager.load(names)
    except MiniPLMError:
        raise
    except Exception as error:
        _explain_missing_data(error)
        raise
    tasks = dict(loaded["tasks"])
    generating = [name for name, task in tasks.items() if task.OUTPUT_TYPE == GENERATED]
    if generating:
        from megatron_miniplm.evaluation.harness.model import cannot_generate

        raise InputError(cannot_generate(generating))
    for task in tasks.values():
        _set_fewshot(task, choice.num_fewshot)
    return LoadedTasks(tasks=tasks, groups=dict(loaded.get("groups", {})))


def _find(choice: TaskChoice) -> "tuple[TaskManager, list[str]]":
    """An index that knows all names, the small one if it does, and the names without `*`.

    Raises:
        InputError: a name that nobody knows.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    for directory in choice.include_dirs:
        if not directory.is_dir():
            raise InputError(f"--include-path {directory} is not a directory of task files")
    theirs = Path(lm_eval.__file__).parent / "tasks"
    ours = [OUR_TASKS, *choice.include_dirs]
    few = [theirs / name for name in PAPER_DIRECTORIES]
    manager = TaskManager(include_path=[*few, *ours], include_defaults=False)
    if not all(_is_whole(manager, name) for name in choice.names):
        manager = TaskManager(include_path=ours)
    names: list[str] = []
    for name in choice.names:
        found = fnmatch.filter(manager.all_tasks, name) or [name] * Path(name).is_file()
        if not found:
            similar = difflib.get_close_matches(name, manager.all_tasks)
            hint = f"did you mean {', '.join(similar)}? " if similar else ""
            raise InputError(
                f"lm_eval has no task, group or tag {name!r}: {hint}`lm_eval ls tasks` lists them, "
                "--include-path DIR adds your own"
            )
        names += [one for one in found if one not in names]
    return manager, names


def _is_whole(manager: "TaskManager", name: str) -> bool:
    """Whether an index knows a name, and all that a group of that name refers to."""
    entry = manager.task_index.get(name)
    if entry is None:
        return False
    members = (entry.cfg or {}).get("task")
    members = members if isinstance(members, list) else []
    return all(isinstance(member, str) and _is_whole(manager, member) for member in members)


def _set_fewshot(task: "Task", num_fewshot: int | None) -> None:
    """As lm_eval's `simple_evaluate` does: a task that says 0 keeps it."""
    own = task.get_config("num_fewshot")
    if own is None or (num_fewshot is not None and own != 0):
        task.set_config(key="num_fewshot", value=num_fewshot or 0)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)


def _explain_missing_data(error: Exception) -> None:
    """Raise `InputError` if the error came up while a task read its data set."""
    from datasets import config

    task = next(_downloading(error), None)
    if task is None:
        return
    kwargs = task.config.dataset_kwargs or {}
    arguments = [repr(task.DATASET_PATH)]
    if task.DATASET_NAME is not None:
        arguments.append(repr(task.DATASET_NAME))
    arguments += [f"{name}={value!r}" for name, value in kwargs.items()]
    reason = " ".join(str(error).split())[:200]
    raise InputError(
        f"task {task.config.task}: its data set {task.DATASET_PATH} is not in {config.HF_DATASETS_CACHE} and cannot be "
        f"fetched ({reason}): on a machine with network and the same HF_HOME run "
        f'python -c "from datasets import load_dataset; '
        f'load_dataset({", ".join(arguments)})", or give --include-path with a task file of that name that reads a copy'
    ) from error


def _downloading(error: Exception) -> Iterator[Any]:
    """The task whose `download` the error passed through."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "download" and hasattr(frame.f_locals.get("self"), "DATASET_PATH"):
            yield frame.f_locals["self"]
