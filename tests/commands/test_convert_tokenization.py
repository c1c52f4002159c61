import json
from pathlib import Path

import pytest

from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus

TEACHER = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100"]
STUDENT = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "70000"]
TEXTS = ["1 2 3", "4", "5 6"]


@pytest.fixture(autouse=True)
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    preprocess = ["preprocess-data", "--input", "text.jsonl", "--output-prefix", "teacher", "--append-eod"]
    assert run_tool(preprocess[0], [*preprocess[1:], *TEACHER]) == 0
    capsys.readouterr()


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    split = ["--input", "teacher_text_document", "--reference-fraction", "0.34", "--output", "split"]
    assert run_tool("split-reference", split) == 0
    capsys.readouterr()
    assert run_tool("convert-tokenization", ["--input", "split/pool", "--output", "student", *STUDENT]) == 0
    (prefix,) = (path.with_suffix("") for path in Path("student").glob("*.idx"))
    corpus = IndexedCorpus.open(prefix)
    assert capsys.readouterr().out == f"{prefix}: 2 sequences, {corpus.num_tokens} tokens\n"
    assert corpus.token_dtype == "<i4"
    assert [corpus.sequence(index)[-1] for index in range(2)] == [69999, 69999]
    weight, path = Path("student/data_args.txt").read_text().split()
    assert (int(weight), Path(path)) == (corpus.num_tokens, prefix.absolute())
    assert run_tool("inspect", [str(prefix), "--check"]) == 0


def test_from_tokens_says_how_many_texts_may_differ(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input", "teacher_text_document", "--output", "student", "--from", "tokens", *STUDENT]
    assert run_tool("convert-tokenization", flags) == 0
    assert capsys.readouterr().out == (
        "student/teacher_text_document: 3 sequences, 9 tokens, 0 sequences whose text may differ\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "0"], "--workers 0 cannot encode: give at least 1"),
        (
            ["--source-tokenizer-type", "NullTokenizer"],
            "--source-tokenizer-type and --source-tokenizer-model belong to --from tokens: leave them out",
        ),
        (["--input", "none"], "none.idx does not exist: give the prefix of a .bin/.idx pair, without extension"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    given = ["--input", "teacher_text_document", "--output", "student", *STUDENT, *flags]
    assert run_tool("convert-tokenization", given) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {message}\n"
    assert not Path("student").exists() or not list(Path("student").iterdir())
