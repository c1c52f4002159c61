"""The command: one table, one JSON, one picture, and a line for what cannot be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from word_models import NUM_WORDS, write_word_model, write_word_tokenizer

from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed.materialize import materialize

VOCABULARY = 80


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    """400 sequences of 15 random tokens, of which the last forty are the first forty again."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (400, 15))
    tokens[360:] = tokens[:40]
    return write_corpus(tmp_path / "pool", tokens)


def analyzed(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    assert run_tool("analyze-data", [*arguments, "--json", str(tmp_path / "it.json")]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "it.json").read_text())
    return found


def test_a_view_equals_its_copy_and_a_seed_its_repetition(corpus: IndexedCorpus, tmp_path: Path) -> None:
    view = write_view(corpus, np.arange(5, 370), tmp_path / "views", label="it", settings={})
    materialize([view], tmp_path / "copy")
    found = analyzed(tmp_path, "--data", "view", str(view), "--data", "copy", str(tmp_path / "copy"))["datasets"]
    assert found["view"] == found["copy"]
    again = analyzed(tmp_path, "--data", "view", str(view), "--data", "copy", str(tmp_path / "copy"))["datasets"]
    assert again == found
    other = analyzed(tmp_path, "--data", "view", str(view), "--seed", "7")["datasets"]
    assert other["view"]["sampled"] != found["view"]["sampled"]


def test_numbers_of_all_data_sets(corpus: IndexedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A selection of sequences of one half of the vocabulary has fewer words, less entropy and smaller distances."""
    narrow = write_corpus(tmp_path / "narrow", np.random.default_rng(1).integers(0, VOCABULARY // 4, (300, 15)))
    held_out = write_corpus(tmp_path / "held", [corpus.sequence(3), np.full(20, 1)])
    output = ["--output", str(tmp_path / "pictures")]
    data = ["--data", "pool", str(corpus.prefix), "--data", "narrow", str(narrow.prefix)]
    found = analyzed(tmp_path, *data, "--heldout", "exam", str(held_out.prefix), *output)
    pool, other = found["datasets"]["pool"], found["datasets"]["narrow"]
    assert (pool["num_sequences"], pool["num_tokens"]) == (400, 6000)
    assert (pool["scan"]["copies"], pool["scan"]["copied_tokens"], other["scan"]["copies"]) == (40, 600, 0)
    assert pool["scan"]["held_out"]["exam"] == [3, 4], "three 13-grams of 15 tokens, and one of ones alone"
    assert other["scan"]["held_out"]["exam"][0] == 0
    assert found["sample"] == {
        "parts": 8,
        "sequences_a_part": 37,
        "tokens_a_part": 37 * 15,
        "sequences_of_a_determinant": 37,
    }
    for name, sign in {
        "distinct": 1,
        "entropy_bits": 1,
        "mean_cosine_distance": 1,
        "log_determinant_distance": -1,
    }.items():
        wide, tight = pool["sampled"][name], other["sampled"][name]
        error = (wide["standard_error"] ** 2 + tight["standard_error"] ** 2) ** 0.5
        assert sign * (wide["value"] - tight["value"]) > max(3 * error, 1e-3), name
    printed = capsys.readouterr().out
    assert "  copies, of sequences              10.00 %           0.00 %" in printed
    assert "13-grams of exam in it" in printed
    assert "after Wang et al. 2024 (arXiv 2402.02318); less is more diverse" in printed
    assert (tmp_path / "pictures" / "analysis.png").read_bytes().startswith(b"\x89PNG")


def test_too_many_tokens_are_not_scanned(
    corpus: IndexedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = analyzed(tmp_path, "--data", "pool", str(corpus.prefix), "--scan-tokens", "5999")
    assert found["datasets"]["pool"]["scan"] is None
    assert "not scanned, more than --scan-tokens 5,999: pool" in capsys.readouterr().out
    assert analyzed(tmp_path, "--data", "pool", str(corpus.prefix), "--scan-tokens", "6000")["datasets"]["pool"]["scan"]


def test_distances_in_the_embedding_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The data's tokenizer has more words than the model's, which reads the others as w0."""
    tokenizer = write_word_tokenizer(tmp_path / "tokenizer", NUM_WORDS + 10)
    random = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in random.integers(0, NUM_WORDS + 10, 12)) for _ in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    of_data = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model"]
    paths = ["--input", str(tmp_path / "text.jsonl"), "--output-prefix", str(tmp_path / "it")]
    assert run_tool("preprocess-data", [*paths, *of_data, str(tokenizer)]) == 0

    model = write_word_model(tmp_path / "model")
    data = ["--data", "it", str(tmp_path / "it_text_document"), "--embedding-model", str(model), *of_data]
    found = analyzed(tmp_path, *data, str(tokenizer), "--sequence-tokens", "9")
    assert found["embedding"] == "mean of the last hidden states of model, 9 tokens"
    assert 0 < found["datasets"]["it"]["sampled"]["mean_cosine_distance"]["value"] < 2
    assert run_tool("analyze-data", [*data, str(model)]) == 2
    assert "it was made with tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "pool"], "--data pool: give each data set one name and at least one path"),
        (["--data", "pool", "{pool}", "--data", "pool", "{pool}"], "--data pool: give each data set one name"),
        (["--data", "pool", "{pool}x"], "poolx.idx does not exist: give the prefix of a .bin/.idx pair"),
        (["--data", "pool", "{pool}", "--sample", "0"], "--sample 0 must be a positive number"),
        (
            ["--data", "pool", "{pool}", "--sample", "9"],
            "pool gave a sample of 9 sequences with tokens, expected at least",
        ),
        (["--data", "pool", "{pool}", "--seed", "-1"], "--seed -1 must be 0 or more"),
        (["--data", "pool", "{pool}", "--embedding-model", "."], "--embedding-model reads text: give the tokenizer"),
        (["--data", "pool", "{pool}", "--tokenizer-type", "NullTokenizer"], "hashed n-grams need no text"),
        (
            ["--data", "pool", "{pool}", "--heldout", "exam", "{pool}", "--scan-tokens", "10"],
            "exam has 6,000 tokens, more than --scan-tokens 10: raise it",
        ),
    ],
)
def test_bad_input_is_one_line(
    corpus: IndexedCorpus, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_tool("analyze-data", [argument.format(pool=corpus.prefix) for argument in arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
