"""What the tests ask: tasks by name, and a model that always answers the same."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from task_files import VOCAB_SIZE

from megatron_miniplm.evaluation.harness.model import MegatronLM
from megatron_miniplm.evaluation.harness.task_loading import TaskChoice


def choice(tasks_dir: Path, *names: str, **settings: Any) -> TaskChoice:
    return TaskChoice(names=names, include_dirs=(tasks_dir,), **settings)


def lm(text: Any, answers: Callable[[Sequence[Any]], list[tuple[float, bool]]] | None = None, **settings: Any) -> Any:
    """A model that answers, unless told otherwise, minus the number of tokens, greedily."""
    answers = answers or (lambda pairs: [(-float(len(continuation)), True) for _, continuation in pairs])
    return MegatronLM(text, answers, **{"max_length": 64, "vocab_size": VOCAB_SIZE, **settings})


def request(*arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0, metadata=("a task", 0, 1))
