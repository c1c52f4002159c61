"""What `train-tokenizer` writes, prints and refuses."""

import json
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.cli import run_tool

pytestmark = pytest.mark.usefixtures("in_tmp_path")

FLAGS = ["--input", "text.jsonl", "--vocab-size", "300", "--type", "bpe", "--output", "tokenizer"]


def write_text(key: str) -> None:
    texts = list(topics.values())[:3]
    Path("text.jsonl").write_text("".join(json.dumps({key: text}) + "\n" for text in texts))


def test_flags_become_settings(capsys: pytest.CaptureFixture[str]) -> None:
    write_text("body")
    assert run_tool("train-tokenizer", [*FLAGS, "--json-keys", "body", "body", "--max-bytes", "5000"]) == 0
    assert capsys.readouterr().out == "tokenizer: 300 tokens\n"
    settings = load_manifest(Path("tokenizer")).settings
    assert {name: settings[name] for name in ("algorithm", "json_keys", "max_bytes")} == {
        "algorithm": "bpe",
        "json_keys": ["body"],
        "max_bytes": 5000,
    }


@pytest.mark.parametrize(
    ("key", "flags"),
    [("text", ["--vocab-size", "256"]), ("body", []), ("text", ["--input", "nothing.jsonl"])],
    ids=["too few tokens", "another key", "no file"],
)
def test_refused_in_one_line(capsys: pytest.CaptureFixture[str], key: str, flags: list[str]) -> None:
    write_text(key)
    assert run_tool("train-tokenizer", [*FLAGS, *flags]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert captured.out == ""
    assert not Path("tokenizer").exists()
