import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["The first document.", "", "Der zweite: äöü 👍🏽", "def third():\n    return 3\n"]


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 50))


def train(kind: str, *further: str) -> int:
    return main(["train-tokenizer", "--input", "text.jsonl", "--type", kind, "--output", kind, *further])


def preprocess(tokenizer_type: str, model: str, *further: str, prefix: str = "out/corpus") -> list[str]:
    tokenizer = ["--tokenizer-type", tokenizer_type, "--tokenizer-model", model]
    return ["preprocess-data", "--input", "text.jsonl", "--output-prefix", prefix, *tokenizer, *further]


@pytest.mark.parametrize(
    ("kind", "tokenizer_type", "model"),
    [
        ("bpe", "HuggingFaceTokenizer", "bpe"),
        ("sentencepiece", "SentencePieceTokenizer", "sentencepiece/tokenizer.model"),
    ],
)
def test_train_then_preprocess(kind: str, tokenizer_type: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(kind, "--vocab-size", "288") == 0
    assert capsys.readouterr().out == f"{kind}: 288 tokens\n"
    assert main(preprocess(tokenizer_type, model, "--append-eod")) == 0
    corpus = IndexedCorpus.open("out/corpus_text_document")
    assert capsys.readouterr().out == f"out/corpus_text_document: 200 documents, {corpus.num_tokens:,} tokens\n"
    assert len(corpus) == 150
    assert {path.name for path in Path("out").iterdir()} == {
        f"corpus_text_document.{suffix}" for suffix in ("bin", "idx", "manifest.json")
    }


def test_the_tool_writes_the_same_with_any_number_of_workers_and_without_torch() -> None:
    """In processes of their own: a thread pool is sized once a process."""
    train("bpe", "--vocab-size", "280")
    outputs = []
    for workers in ("1", "3"):
        arguments = preprocess("HuggingFaceTokenizer", "bpe", "--workers", workers, prefix=f"out{workers}/corpus")
        tool = f"sys.argv = {['preprocess_data.py', *arguments[1:]]!r}; "
        run = f"runpy.run_path({str(REPOSITORY / 'tools' / 'preprocess_data.py')!r}, run_name='__main__')"
        check = "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
        command = [sys.executable, "-c", f"import atexit, runpy, sys; {check}{tool}{run}"]
        process = subprocess.run(command, capture_output=True, text=True)
        assert (process.returncode, process.stderr) == (0, "False\n")
        outputs.append({path.name: path.read_bytes() for path in Path(f"out{workers}").iterdir()})
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--input", "none.jsonl"], "error: none.jsonl does not exist: give one or more JSONL files to --input\n"),
        (["--tokenizer-type", "GPT2"], "error: --tokenizer-type GPT2 is unknown: choose one of HuggingFaceTokenizer, "),
        (["--tokenizer-model", "none"], "error: --tokenizer-model none does not exist: give the path of a trained"),
        (["--json-keys", "body"], "error: text.jsonl, line 1: expected the key 'body', found 'text': name the key "),
        (["--workers", "0"], "error: --workers 0 cannot encode: give at least 1\n"),
    ],
)
def test_errors_are_one_line_and_publish_nothing(
    further: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train("bpe", "--vocab-size", "280")
    capsys.readouterr()
    assert main(preprocess("HuggingFaceTokenizer", "bpe", *further)) == 2
    error = capsys.readouterr().err
    assert error.startswith(message)
    assert error.count("\n") == 1
    assert not Path("out").exists() or not list(Path("out").iterdir())
