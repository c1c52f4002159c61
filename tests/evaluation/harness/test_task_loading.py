import json
from functools import partial
from pathlib import Path

import pytest
from small_requests import choice
from task_files import PAPER_TASKS

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.harness.task_loading import PAPER_GROUP, load_tasks


def test_the_group_of_the_paper_is_whole_in_the_small_index(tasks_dir: Path, stories: Path) -> None:
    loaded = load_tasks(choice(tasks_dir, PAPER_GROUP))
    assert list(loaded.tasks) == [*PAPER_TASKS, "storycloze_2018_csv"]
    assert {task.get_config("num_fewshot") for task in loaded.tasks.values()} == {0}


def test_story_cloze_is_asked_as_lm_eval_asks_it(tasks_dir: Path, stories: Path) -> None:
    (task,) = load_tasks(choice(tasks_dir, "storycloze_2018_csv")).tasks.values()
    document = task.eval_docs[0]
    assert task.doc_to_text(document) == " ".join(document[f"InputSentence{number}"] for number in (1, 2, 3, 4))
    assert task.doc_to_choice(document) == [document[f"RandomFifthSentenceQuiz{number}"] for number in (1, 2)]
    assert task.doc_to_target(document) == document["AnswerRightEnding"] - 1


def test_story_cloze_without_its_file(tasks_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIPLM_STORYCLOZE_CSV", raising=False)
    with pytest.raises(InputError, match="MINIPLM_STORYCLOZE_CSV is not set: ask for the Story Cloze Test"):
        load_tasks(choice(tasks_dir, "storycloze_2018_csv"))
    monkeypatch.setenv("MINIPLM_STORYCLOZE_CSV", "nowhere.csv")
    with pytest.raises(InputError, match=r"MINIPLM_STORYCLOZE_CSV=nowhere\.csv is not a file"):
        load_tasks(choice(tasks_dir, "storycloze_2018_csv"))


@pytest.fixture
def all_tasks_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of all of lm_eval takes 10 seconds: make do with ours."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


def test_stars_and_task_files(tasks_dir: Path, all_tasks_are_few: None) -> None:
    names = ("arc_[ce]*", str(tasks_dir / "piqa.yaml"), "arc_easy")
    assert list(load_tasks(choice(tasks_dir, *names)).tasks) == ["arc_challenge", "arc_easy", "piqa"]


def test_few_shots_are_taken_from_the_task_unless_it_says_none(tasks_dir: Path) -> None:
    (task,) = load_tasks(choice(tasks_dir, "piqa", num_fewshot=2)).tasks.values()
    assert task.get_config("num_fewshot") == 2
    (tasks_dir / "none.yaml").write_text(json.dumps({"include": "piqa.yaml", "task": "none", "num_fewshot": 0}))
    (task,) = load_tasks(choice(tasks_dir, "none", num_fewshot=2)).tasks.values()
    assert task.get_config("num_fewshot") == 0


def test_an_unknown_name(tasks_dir: Path, all_tasks_are_few: None) -> None:
    with pytest.raises(InputError, match=r"no task, group or tag 'helaswag': did you mean hellaswag.* lists them"):
        load_tasks(choice(tasks_dir, "piqa", "helaswag"))


def test_a_data_set_that_is_not_here(tasks_dir: Path) -> None:
    name = "nothing/here/data.jsonl"
    task = {"task": "lost", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": name}}}
    rest = {"output_type": "loglikelihood", "test_split": "test", "doc_to_text": "a", "doc_to_target": "b"}
    (tasks_dir / "lost.yaml").write_text(json.dumps({**task, **rest}))
    with pytest.raises(InputError, match=r"task lost: its data set json is not in .* HF_HOME run python -c") as found:
        load_tasks(choice(tasks_dir, "lost"))
    assert f"load_dataset('json', data_files={{'test': '{name}'}})" in str(found.value)


def test_an_error_elsewhere_in_a_task_is_no_missing_data_set(tasks_dir: Path) -> None:
    (tasks_dir / "broken.yaml").write_text(json.dumps({"include": "piqa.yaml", "task": "broken", "output_type": "x"}))
    with pytest.raises(ValueError, match="invalid output_type"):
        load_tasks(choice(tasks_dir, "broken"))


def test_a_task_that_wants_text_is_refused_at_once(tasks_dir: Path) -> None:
    settings = {"include": "piqa.yaml", "task": "writes", "output_type": "generate_until", "doc_to_choice": None}
    (tasks_dir / "writes.yaml").write_text(json.dumps({**settings, "metric_list": [{"metric": "exact_match"}]}))
    with pytest.raises(InputError, match=r"writes: megatron-miniplm .* generates no text: export the model"):
        load_tasks(choice(tasks_dir, "writes"))
