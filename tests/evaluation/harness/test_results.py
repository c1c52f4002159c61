import json
import math
from pathlib import Path
from typing import Any

import pytest
from small_requests import choice, lm
from task_files import EDGE_TASK, VOCAB_SIZE

from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.evaluation.harness.model import HuggingFaceText
from megatron_miniplm.evaluation.harness.results import (
    ModelKey,
    ResultFiles,
    evaluate_tasks,
    headlines,
    merge,
    plain,
    table,
)
from megatron_miniplm.evaluation.harness.task_loading import LoadedTasks, load_tasks

KEY = ModelKey(weights="w", tokenizer="t", vocab_size=VOCAB_SIZE, max_length=64, precision="torch.float32")


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
