"""lm_eval through Megatron against lm_eval's own model of transformers, on an export of the same checkpoint."""

import json
import math
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from megatron_runs import REPOSITORY, environment, launcher, run
from rank_server import rank_server
from task_files import EDGE_TASK, MAX_LENGTH, NUM_EXAMPLES, PAPER_TASKS, ROLLING_TASK, write_model, write_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_miniplm.evaluation.harness.task_loading import OUR_TASKS

pytestmark = pytest.mark.slow

CONVERT, EVALUATE = (REPOSITORY / "tools" / f"{name}.py" for name in ("convert_checkpoint", "evaluate_tasks"))
TOLERANCE_NATS = 1e-3
STORYCLOZE = "storycloze_2018_csv"
NAMES = ["miniplm-paper", ROLLING_TASK, EDGE_TASK]
#: Name -> processes and flags.
LAYOUTS = {
    "tp1": (1, []),
    "tp2": (2, ["--tensor-model-parallel-size", "2"]),
    "pp2-hf": (2, ["--pipeline-model-parallel-size", "2", "--micro-batch-size", "3"]),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A checkpoint, its export, the tasks, and what lm_eval finds with the export.

    Attributes:
        truth: lm_eval's results and samples.
    """

    directory: Path
    truth: dict[str, Any]

    def command(self, name: str, *flags: str, num_processes: int = 1) -> list[str]:
        out = self.directory / name
        return [
            *launcher(num_processes),
            str(EVALUATE),
            *("--include-path", str(self.directory / "tasks"), "--offline", "--results", f"{out}.d"),
            *("--json", f"{out}.json", "--samples", f"{out}.jsonl"),
            *flags,
        ]

    def model(self) -> list[str]:
        tokenizer = ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(self.directory / "hf"))
        return ["--load", str(self.directory / "checkpoint"), "--use-checkpoint-args", *tokenizer]

    def evaluate(self, name: str, *flags: str, num_processes: int = 1) -> dict[str, Any]:
        """lm_eval's results and samples through Megatron, and what was printed."""
        process = run(self.command(name, *flags, num_processes=num_processes))
        assert process.returncode == 0, process.stderr[-4000:]
        found = json.loads((self.directory / f"{name}.json").read_text())
        samples: dict[str, list[Any]] = {}
        for line in (self.directory / f"{name}.jsonl").read_text().splitlines():
            samples.setdefault(json.loads(line)["task"], []).append(json.loads(line))
        return {**found, "samples": samples, "printed": process.stdout, "log": process.stderr}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    directory = tmp_path_factory.mktemp("tasks")
    source = write_model(directory / "hf")
    for flags in (
        ["--load-hf", str(source), "--save", str(directory / "checkpoint")],
        [
            "--load",
            str(directory / "checkpoint"),
            "--save-hf",
            str(directory / "export"),
            "--tokenizer-model",
            str(source),
        ],
    ):
        process = run([*launcher(1), str(CONVERT), *flags])
        assert process.returncode == 0, process.stderr[-4000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(directory / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(directory / "cache"))
        stories = write_tasks(directory / "tasks", greedy_of(source))
        patch.setenv("MINIPLM_STORYCLOZE_CSV", str(stories))
        yield Setting(directory=directory, truth=truth_of(directory / "export", directory / "tasks"))


def greedy_of(directory: Path):  # type: ignore[no-untyped-def]
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModelForCausalLM.from_pretrained(directory)

    @torch.no_grad()
    def greedy(text: str) -> str:
        ids = tokenizer.encode(text)[-MAX_LENGTH:]
        return tokenizer.decode([int(model(torch.tensor([ids])).logits[0, -1].argmax())])

    return greedy


def truth_of(export: Path, tasks: Path) -> dict[str, Any]:
    """lm_eval's own road."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[OUR_TASKS, tasks], include_defaults=False)
    model = HFLM(pretrained=str(export), dtype="float32", device="cpu", batch_size=16)
    found = simple_evaluate(model=model, tasks=NAMES, task_manager=manager, bootstrap_iters=100)
    return json.loads(json.dumps(found, default=str))


@pytest.fixture(scope="module")
def one_rank(setting: Setting) -> dict[str, Any]:
    return setting.evaluate("tp1", *setting.model(), "--tasks", *NAMES)


def log_likelihoods(found: dict[str, Any]) -> dict[tuple[str, int], list[tuple[float, bool]]]:
    """Task and example -> log-likelihood and whether it is greedy of each request; rolling ones are never greedy."""
    answers = {}
    for name, samples in found["samples"].items():
        for sample in samples:
            resps = [resp[0] for resp in sample["resps"]]
            pairs = [resp if isinstance(resp, list) else [resp, False] for resp in resps]
            answers[name, sample["doc_id"]] = [(float(value), str(greedy) == "True") for value, greedy in pairs]
    return answers


def assert_same_answers(found: dict[str, Any], truth: dict[str, Any]) -> None:
    answers, expected = log_likelihoods(found), log_likelihoods(truth)
    assert answers.keys() == expected.keys()
    for key, pairs in answers.items():
        assert [greedy for _, greedy in pairs] == [greedy for _, greedy in expected[key]], key
        values, theirs = ([value for value, _ in some] for some in (pairs, expected[key]))
        assert values == pytest.approx(theirs, abs=TOLERANCE_NATS, rel=0), key
    for name, metrics in truth["results"].items():
        for metric, value in metrics.items():
            if metric.startswith("acc"):
                assert found["results"][name][metric] == value, (name, metric)


def test_the_tasks_have_what_is_compared(setting: Setting) -> None:
    """Right and wrong answers, greedy and not, truncated and not."""
    assert set(setting.truth["samples"]) == {*PAPER_TASKS, STORYCLOZE, ROLLING_TASK, EDGE_TASK}
    greedy = [pairs[0][1] for (name, _), pairs in log_likelihoods(setting.truth).items() if name == "lambada_openai"]
    assert sum(greedy) == NUM_EXAMPLES // 2
    tokenizer = AutoTokenizer.from_pretrained(setting.directory / "hf")
    for name in (EDGE_TASK, "lambada_openai", "hellaswag"):
        lengths = [len(tokenizer.encode(sample["arguments"][0][0])) for sample in setting.truth["samples"][name]]
        assert min(lengths) < MAX_LENGTH < max(lengths)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_megatron_answers_as_the_export_does(setting: Setting, one_rank: dict[str, Any], layout: str) -> None:
    """Every log-likelihood, every greedy continuation and every accuracy of all tasks; once without a checkpoint."""
    num_processes, flags = LAYOUTS[layout]
    found = one_rank
    if layout != "tp1":
        model = ["--load-hf", str(setting.directory / "hf")] if layout.endswith("hf") else setting.model()
        tasks = ["--tasks", ",".join(NAMES)]
        found = setting.evaluate(layout, *model, *tasks, *flags, num_processes=num_processes)
    assert_same_answers(found, setting.truth)


def test_the_mean_is_that_of_the_paper(one_rank: dict[str, Any], setting: Setting) -> None:
    """`acc_norm` where lm_eval has one, `acc` otherwise, and a plain mean over nine."""
    theirs = setting.truth["results"]
    normed = ("hellaswag", "openbookqa", "arc_easy", "arc_challenge", "piqa")
    accuracies = [theirs[name]["acc_norm,none"] for name in normed]
    accuracies += [theirs[name]["acc,none"] for name in ("lambada_openai", "winogrande", "social_iqa", STORYCLOZE)]
    errors = [theirs[name]["acc_norm_stderr,none"] for name in normed]
    errors += [theirs[name]["acc_stderr,none"] for name in ("lambada_openai", "winogrande", "social_iqa", STORYCLOZE)]
    mean = one_rank["miniplm"]
    assert mean["mean_accuracy"] == pytest.approx(sum(accuracies) / 9)
    assert mean["mean_accuracy_stderr"] == pytest.approx(math.sqrt(sum(error**2 for error in errors)) / 9)
    last_line = one_rank["printed"].splitlines()[-1].split()
    assert last_line == ["mean", "of", "9", f"{mean['mean_accuracy']:.4f}", f"{mean['mean_accuracy_stderr']:.4f}"]


def test_perplexities_are_those_of_lm_eval(one_rank: dict[str, Any], setting: Setting) -> None:
    for name, metric in ((ROLLING_TASK, "word_perplexity,none"), ("lambada_openai", "perplexity,none")):
        assert one_rank["results"][name][metric] == pytest.approx(setting.truth["results"][name][metric], rel=1e-4)


def test_a_stopped_job_continues_with_two_replicas(setting: Setting, one_rank: dict[str, Any]) -> None:
    """What was finished stays as it is and is not asked again; replicas change not a bit of the rest."""
    flags = [*setting.model(), "--tasks", *NAMES]
    process = rank_server().start(
        setting.command("stopped", *flags), environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.endswith(": finished\n"):
            process.send_signal(signal.SIGTERM)
            break
    log = process.stderr.read()
    assert process.wait() == 75, log
    assert log.splitlines()[-1] == "interrupted; run the same command again to continue"
    finished = {path: path.read_bytes() for path in (setting.directory / "stopped.d").glob("*.json")}
    assert 0 < len(finished) < len(one_rank["n-samples"])
    assert not (setting.directory / "stopped.json").exists()
    found = setting.evaluate("stopped", *flags, num_processes=2)
    assert len(re.findall(r": finished$", found["log"], re.MULTILINE)) == len(one_rank["n-samples"]) - len(finished)
    assert {path: path.read_bytes() for path in finished} == finished
    assert found["results"] == one_rank["results"]
    assert log_likelihoods(found) == log_likelihoods(one_rank)


def test_a_data_set_that_is_not_here_is_one_line_before_the_model_loads(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = setting.command("missing", *setting.model(), "--tasks", "hellaswag", num_processes=2)
    monkeypatch.setenv("MINIPLM_VERBOSE", "1")  # shows when the model loads
    process = run([word for word in command if word not in ("--include-path", str(setting.directory / "tasks"))])
    (line,) = (line for line in process.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: task hellaswag: its data set Rowan/hellaswag is not in ")
    assert "run python -c \"from datasets import load_dataset; load_dataset('Rowan/hellaswag')\"" in line
    assert process.returncode != 0
    assert "loading release distributed checkpoint" not in process.stdout
