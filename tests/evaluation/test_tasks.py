import json
import logging
import math
import types
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from task_files import BOS, EDGE_TASK, PAPER_TASKS, VOCAB_SIZE, write_tasks, write_tokenizer

from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.evaluation.harness.model import HuggingFaceText, MegatronText
from megatron_miniplm.evaluation.harness.results import (
    ModelKey,
    ResultFiles,
    evaluate_tasks,
    headlines,
    merge,
    plain,
    table,
)
from megatron_miniplm.evaluation.harness.task_loading import PAPER_GROUP, LoadedTasks, TaskChoice, load_tasks

MAX_LENGTH = 8
KEY = ModelKey(weights="w", tokenizer="t", vocab_size=VOCAB_SIZE, max_length=64, precision="torch.float32")


@pytest.fixture(scope="module")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tasks") / "tasks"
    write_tasks(directory, lambda text: " the" if len(text) % 2 else "!")
    return directory


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceText:
    return HuggingFaceText.open(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def stories(tasks_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("MINIPLM_STORYCLOZE_CSV", str(tasks_dir / "storycloze.csv"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tasks_dir / "storycloze.csv"


def choice(tasks_dir: Path, *names: str, **settings: Any) -> TaskChoice:
    return TaskChoice(names=names, include_dirs=(tasks_dir,), **settings)


def lm(text: Any, answers: Callable[[Sequence[Any]], list[tuple[float, bool]]] | None = None, **settings: Any) -> Any:
    """A model that answers, unless told otherwise, minus the number of tokens, greedily."""
    from megatron_miniplm.evaluation.harness.model import MegatronLM

    answers = answers or (lambda pairs: [(-float(len(continuation)), True) for _, continuation in pairs])
    return MegatronLM(text, answers, **{"max_length": 64, "vocab_size": VOCAB_SIZE, **settings})


def request(*arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance("loglikelihood", {}, arguments, 0, metadata=("a task", 0, 1))


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


def test_the_model_writes_nothing(text: HuggingFaceText) -> None:
    with pytest.raises(InputError, match=r"^a task: megatron-miniplm .*convert-checkpoint --save-hf DIR"):
        lm(text).generate_until([request("once", {})])


def test_the_model_is_found_by_its_name() -> None:
    from lm_eval.api.registry import get_model

    from megatron_miniplm.evaluation.harness.model import MegatronLM

    assert get_model("megatron-miniplm") is MegatronLM


def test_rolling_windows_score_every_token_once(text: HuggingFaceText) -> None:
    """28 tokens and a BOS in windows of 8: each answer is minus the tokens that count."""
    asked: list[Any] = []

    def answers(pairs: Sequence[Any]) -> list[tuple[float, bool]]:
        asked.extend(pairs)
        return [(-float(len(continuation)), False) for _, continuation in pairs]

    long, empty, short = "the river and the stone of light " * 4, "", "the"
    model = lm(text, answers, max_length=MAX_LENGTH)
    model_values = model.loglikelihood_rolling([request(one) for one in (long, empty, short)])
    ids = [text.encode(one, add_special_tokens=None) for one in (long, empty, short)]
    assert model_values == [-len(one) for one in ids]
    assert [token for _, continuation in asked for token in continuation] == [token for one in ids for token in one]
    assert {len(context) + len(continuation) for context, continuation in asked[:3]} == {MAX_LENGTH + 1}


@pytest.mark.parametrize(
    ("context", "continuation", "settings", "message"),
    [
        ("the", "", {}, "the continuation '' has no tokens of its own"),
        (
            "the",
            " river stone light of and to in walked",
            {},
            r"has 16 tokens, and the model reads 7 at most: raise --seq",
        ),
        ("the", " river", {"vocab_size": 300}, r"the tokenizer gives token 3\d\d, the model has 300"),
    ],
)
def test_what_cannot_be_scored(
    text: HuggingFaceText, context: str, continuation: str, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        lm(text, **{"max_length": 7, **settings}).loglikelihood([request(context, continuation)])


def test_bos_comes_once(text: HuggingFaceText) -> None:
    plain_ids = text.encode("the river", add_special_tokens=False)
    assert text.encode("the river", add_special_tokens=None) == [text.prefix_token, *plain_ids]
    assert text.encode(f"{BOS}the river", add_special_tokens=None) == [text.prefix_token, *plain_ids]


def test_other_tokenizers_of_megatron() -> None:
    """One with BOS, one whose BOS is -1, one that has none."""
    tokenizers = [
        types.SimpleNamespace(bos=5, eod=7),
        types.SimpleNamespace(bos=-1, eod=7),
        types.SimpleNamespace(eod=7),
    ]
    assert [MegatronText(one).prefix_token for one in tokenizers] == [5, 7, 7]
    tokenizer = types.SimpleNamespace(eod=7, tokenize=lambda text: tuple(map(ord, text)))
    assert MegatronText(tokenizer).encode("ab", add_special_tokens=None) == [97, 98]


def ask(
    tasks_dir: Path, text: Any, results: Path, *names: str, key: ModelKey = KEY, **others: Any
) -> tuple[list[str], int]:
    """The table, and how often a model was wanted."""
    loads: list[None] = []

    def load() -> Any:
        loads.append(None)
        return lm(text)

    asked = choice(tasks_dir, *names)
    paths = {"json_path": None, "samples_path": None, **others}
    return evaluate_tasks(asked, ResultFiles(results, key, asked), load, **paths), len(loads)


def test_one_directory_serves_many_models(tasks_dir: Path, text: HuggingFaceText, tmp_path: Path) -> None:
    others = {"weights": "v", "tokenizer": "s", "vocab_size": 99, "max_length": 32, "precision": "torch.bfloat16"}
    keys = [KEY, *(ModelKey(**{**vars(KEY), name: value}) for name, value in others.items())]
    assert [ask(tasks_dir, text, tmp_path, "piqa", key=key)[1] for key in keys] == [1] * len(keys)
    assert [ask(tasks_dir, text, tmp_path, "piqa", key=key)[1] for key in keys] == [0] * len(keys)
    assert len(list(tmp_path.glob("piqa-*.json"))) == len(keys)


def test_other_questions_are_asked_anew(tasks_dir: Path, text: HuggingFaceText, tmp_path: Path) -> None:
    def path(**settings: Any) -> Path:
        asked = choice(tasks_dir, "piqa", **settings)
        (task,) = load_tasks(asked).tasks.values()
        return ResultFiles(tmp_path, KEY, asked).path(task)

    paths = {path(), path(limit=3), path(num_fewshot=1)}
    data = tasks_dir / "piqa.jsonl"
    kept = data.read_text()
    try:
        data.write_text(kept.replace('"label": 1', '"label": 0'))
        paths.add(path())
    finally:
        data.write_text(kept)
    assert len(paths) == 4
    assert path() in paths


def test_a_damaged_result_is_named(tasks_dir: Path, text: HuggingFaceText, tmp_path: Path) -> None:
    ask(tasks_dir, text, tmp_path, "piqa")
    (path,) = tmp_path.glob("piqa-*.json")
    path.write_text(path.read_text()[:100])
    with pytest.raises(CorruptArtifactError, match=f"{path} is not a valid result of a task .*: delete it"):
        ask(tasks_dir, text, tmp_path, "piqa")


def test_samples_hold_every_request(tasks_dir: Path, text: HuggingFaceText, tmp_path: Path) -> None:
    """Unicode line separators are no ends of lines."""
    ask(tasks_dir, text, tmp_path / "d", EDGE_TASK, samples_path=tmp_path / "samples.jsonl")
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").open(encoding="utf-8")]
    documents = [json.loads(line) for line in (tasks_dir / f"{EDGE_TASK}.jsonl").open(encoding="utf-8")]
    assert [sample["doc"] for sample in samples] == documents
    assert {sample["task"] for sample in samples} == {EDGE_TASK}
    assert all(sample["resps"][0][0][0] < 0 for sample in samples)


def test_metrics_without_an_accuracy_are_all_shown() -> None:
    results = {
        "both": {"alias": "both", "acc,none": 0.25, "acc_stderr,none": 0.1, "acc_norm,none": 0.5, "sample_len": 4},
        "rolling": {"word_perplexity,none": 7.0, "word_perplexity_stderr,none": "N/A", "bits_per_byte,none": 1.5},
    }
    assert list(headlines(results, ["both", "rolling"])) == [
        ("both", "acc_norm", 0.5, None),
        ("rolling", "word_perplexity", 7.0, "N/A"),
        ("rolling", "bits_per_byte", 1.5, None),
    ]
    merged = {"results": results, "n-samples": {name: {"effective": 1200} for name in results}}
    assert [line.split() for line in table(merged, ["both", "rolling"])] == [
        ["task", "metric", "value", "stderr", "examples"],
        ["both", "acc_norm", "0.5000", "1,200"],
        ["rolling", "word_perplexity", "7.0000", "1,200"],
        ["rolling", "bits_per_byte", "1.5000", "1,200"],
    ]


def test_groups_of_lm_eval_are_aggregated_by_it(tasks_dir: Path) -> None:
    (tasks_dir / "pair.yaml").write_text(
        json.dumps({"group": "pair", "task": ["piqa", "winogrande"], "aggregate_metric_list": [{"metric": "acc"}]})
    )
    loaded = load_tasks(choice(tasks_dir, "pair"))
    parts = {"configs": {}, "versions": {}, "n-shot": {}, "higher_is_better": {}, "n-samples": {}}
    found = {
        name: {**parts, "results": {name: {"acc,none": value, "acc_stderr,none": 0.1, "sample_len": count}}}
        for name, value, count in (("piqa", 0.5, 30), ("winogrande", 1.0, 10))
    }
    merged = merge(loaded, found)
    assert merged["results"]["pair"]["acc,none"] == pytest.approx((0.5 * 30 + 1.0 * 10) / 40)
    assert merged["group_subtasks"] == {"pair": ["piqa", "winogrande"]}
    assert "miniplm" not in merge(LoadedTasks(tasks=loaded.tasks, groups={}), found)


def test_what_is_not_finite_survives_json() -> None:
    assert plain({"a": math.inf, "b": [math.nan, 1.5]}) == {"a": "Infinity", "b": ["NaN", 1.5]}


@pytest.fixture(autouse=True)
def _lm_eval_stays_as_loud_as_it_was() -> Any:
    logger = logging.getLogger("lm_eval")
    level = logger.level
    yield
    logger.setLevel(level)
