import logging
from pathlib import Path
from typing import Any

import pytest
from task_files import write_tasks, write_tokenizer

from megatron_miniplm.evaluation.harness.model import HuggingFaceText


@pytest.fixture(scope="package")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks") / "tasks"
    write_tasks(directory, lambda text: " the" if len(text) % 2 else "!")
    return directory


@pytest.fixture(scope="package")
def text(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceText:
    return HuggingFaceText.open(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def stories(tasks_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MINIPLM_STORYCLOZE_CSV", str(tasks_dir / "storycloze.csv"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tasks_dir / "storycloze.csv"


@pytest.fixture(autouse=True)
def _lm_eval_stays_as_loud_as_it_was() -> Any:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    yield
    logger.setLevel(level)
