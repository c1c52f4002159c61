"""What inspect-batch says of a step against what a real run has read."""

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from megatron_runs import REPOSITORY, error_lines, run
from refined_runs import ScoredCorpora, training_command, write_scored_corpora

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.cli import run_tool
from megatron_miniplm.commands.inspect_batch import _source

TOOL = str(REPOSITORY / "tools" / "inspect_batch.py")
ITERATION = 5


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredCorpora:
    return write_scored_corpora(tmp_path_factory.mktemp("inspected"))


def inspect(scored: ScoredCorpora, *flags: str) -> "subprocess.CompletedProcess[str]":
    return run(training_command(scored, scored.directory / "log", *flags, program=(TOOL,)))


@pytest.mark.slow
def test_the_sequences_that_a_run_has_read(scored: ScoredCorpora, tmp_path: Path) -> None:
    """The run is on two ranks; the tool is told of a layout that this machine does not have."""
    selection = scored.select("weighted", ratio=0.8, weights="linear")
    ours = ("--miniplm-selection", str(selection), "--miniplm-weighting", "resample", "--train-iters", str(ITERATION))
    recorder = (str(REPOSITORY / "tests" / "support" / "recording_pretrain.py"), str(tmp_path))
    process = run(training_command(scored, tmp_path / "log", *ours, num_processes=2, program=recorder))
    assert process.returncode == 0, process.stderr[-4000:]
    read: Counter[tuple[str, int]] = Counter()
    for path in tmp_path.glob("*.txt"):
        last = path.read_text().splitlines()[2 * (ITERATION - 1) : 2 * ITERATION]  # two samples a rank and step
        assert len(last) == 2
        for line in last:
            name, _, sequences = line.split(" ", 2)
            read.update((name, sequence) for sequence in ast.literal_eval(sequences))
    layout = ("--tensor-model-parallel-size", "4", "--num-query-groups", "4", "--pipeline-model-parallel-size", "2")
    process = inspect(scored, *ours, *layout, "--iteration", str(ITERATION), "--json")
    assert process.returncode == 0, process.stderr[-4000:]
    found = json.loads(process.stdout)
    assert found["consumed_samples"] == [16, 20]
    told = Counter((Path(entry["prefix"]).name, entry["sequence"]) for entry in found["sequences"])
    assert told <= read
    prefixes = {prefix.name: prefix for prefix in Selection.open(selection).prefixes}
    lengths = {corpus.prefix.name: corpus.lengths_N for corpus in scored.corpora}
    assert all(lengths[name][sequence] == 0 for name, sequence in read - told), "empty sequences have no tokens to show"
    for entry in found["sequences"]:
        prefix = prefixes[Path(entry["prefix"]).name]
        place = prefix.indices().tolist().index(entry["sequence"])
        assert entry["weight"] == pytest.approx(float(prefix.weights()[place]))
        scores = [entry[f"{role} scores"] for role in ("teacher", "reference")]
        if scores[0]["num_scored_tokens"]:
            difference = (scores[1]["nll_nats"] - scores[0]["nll_nats"]) / scores[0]["num_scored_tokens"]
            assert entry["value"] == pytest.approx(difference, rel=1e-5)
        assert len(entry["text"].split()) == entry["num_tokens"]
    table = inspect(scored, *ours, "--iteration", str(ITERATION), "--text-characters", "10")
    assert table.returncode == 0, table.stderr[-4000:]
    assert table.stdout.startswith(f"iteration {ITERATION}: consumed samples 16 to 20, 260 tokens\n")
    assert table.stdout.count("\nsample ") == len(found["sequences"])


def test_the_source_of_a_sequence_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any working directory; the position is where the document's line begins."""
    text, lines = tmp_path / "raw" / "text.jsonl", [json.dumps({"text": f"{number} 7"}) for number in (11, 12, 13)]
    text.parent.mkdir()
    text.write_text("\n".join(lines))
    (tmp_path / "elsewhere").mkdir()
    tokenizer = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "99"]
    assert (
        run_tool("preprocess-data", ["--input", str(text), "--output-prefix", str(tmp_path / "corpus/c"), *tokenizer])
        == 0
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    (document,) = _source(str(tmp_path / "corpus" / "c_text_document"), 2)["documents"]
    with open(document["source"], "rb") as stream:
        stream.seek(document["position"])
        assert json.loads(stream.readline()) == {"text": "13 7"}


def test_without_a_global_batch_size(scored: ScoredCorpora) -> None:
    process = run([sys.executable, TOOL, "--iteration", "3", "--data-path", "x"])
    assert process.returncode == 2
    assert error_lines(process.stderr)[0].startswith("error: --global-batch-size is missing")
