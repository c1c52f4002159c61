import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.cli import main
from megatron_miniplm.commands.preprocess_data import choose_shards
from megatron_miniplm.corpus.build import WHOLE, Shard
from megatron_miniplm.errors import InputError
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
    assert capsys.readouterr().out == (
        f"out/corpus_text_document: 200 documents, {corpus.num_tokens:,} tokens, 50 of the documents without a token\n"
    )
    assert len(corpus) == 150
    assert {path.name for path in Path("out").iterdir()} == {
        f"corpus_text_document.{suffix}" for suffix in ("bin", "idx", "documents.parquet", "manifest.json")
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
        (["--input", "none.jsonl"], "error: none.jsonl does not exist: give files, directories or globs of text"),
        (["--tokenizer-type", "GPT2"], "error: --tokenizer-type GPT2 is not supported: choose one of HuggingFace"),
        (["--tokenizer-model", "none"], "error: --tokenizer-model none does not exist: give the path of a trained"),
        (["--json-keys", "body"], "error: text.jsonl, line 1: expected the key 'body', found 'text': name the key "),
        (["--workers", "0"], "error: --workers 0 cannot encode: give at least 1\n"),
        (
            ["--sequence", "chunk"],
            "error: --sequence chunk and --chunk-length belong together: give both (the paper's ",
        ),
        (
            ["--chunk-length", "9"],
            "error: --sequence chunk and --chunk-length belong together: give both (the paper's ",
        ),
        (["--sequence", "chunk", "--chunk-length", "0"], "error: --chunk-length 0 has no room for a token: give at "),
        (["--shard-index", "0"], "error: --shard-index needs --num-shards\n"),
        (["--num-shards", "2", "--shard-index", "2"], "error: shard 2 is none of 2: they count from 0 to 1\n"),
        (["--num-shards", "0"], "error: --num-shards 0 makes no shard: give at least 1\n"),
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


@pytest.mark.parametrize("lines", ["", '{"text": ""}\n'])
def test_a_corpus_without_a_token_is_warned_of(lines: str, caplog: pytest.LogCaptureFixture) -> None:
    train("bpe", "--vocab-size", "280")
    Path("none.jsonl").write_text(lines)
    assert main(preprocess("HuggingFaceTokenizer", "bpe", "--input", "none.jsonl")) == 0
    assert "warning: out/corpus_text_document has no tokens" in caplog.text


def test_flags_of_megatrons_tool_that_change_nothing_are_accepted() -> None:
    train("bpe", "--vocab-size", "280")
    assert main(preprocess("HuggingFaceTokenizer", "bpe", prefix="plain/corpus")) == 0
    flags = ["--partitions", "2", "--keep-sequential-samples", "--log-interval", "1000"]
    assert main(preprocess("HuggingFaceTokenizer", "bpe", *flags, prefix="flags/corpus")) == 0
    plain, flagged = ({path.name: path.read_bytes() for path in Path(name).iterdir()} for name in ("plain", "flags"))
    assert plain == flagged


def test_chunks_and_their_origin(capsys: pytest.CaptureFixture[str]) -> None:
    train("bpe", "--vocab-size", "288")
    capsys.readouterr()
    command = preprocess("HuggingFaceTokenizer", "bpe", "--sequence", "chunk", "--chunk-length", "40")
    assert main(command) == 0
    corpus = IndexedCorpus.open("out/corpus_text_chunk")
    assert corpus.lengths_N.max() <= 40
    fill = corpus.num_tokens / (40 * len(corpus))
    assert f"{corpus.num_tokens:,} tokens, {len(corpus):,} chunks, {fill:.1%} full" in capsys.readouterr().out
    assert main(["inspect", "out/corpus_text_chunk", "--sequence", "0"]) == 0
    assert capsys.readouterr().out.startswith(
        "--- text.jsonl, line 1: piece 0, from byte 0, 10 tokens\nThe first document.\n--- text.jsonl, line 3: piece 0"
    )
    assert main(["inspect", "out/corpus_text_chunk", "--check"]) == 0


def test_shards_are_made_one_after_the_other_or_by_an_array(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("bpe", "--vocab-size", "280")
    capsys.readouterr()
    assert main(preprocess("HuggingFaceTokenizer", "bpe", "--num-shards", "2")) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"out/corpus_text_document_0000{index}-of-00002" for index in (0, 1)]
    array = {
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_ARRAY_TASK_MIN": "0",
        "SLURM_ARRAY_TASK_MAX": "2",
        "SLURM_ARRAY_TASK_COUNT": "3",
    }
    for name, value in array.items():
        monkeypatch.setenv(name, value)
    assert main(preprocess("HuggingFaceTokenizer", "bpe")) == 0
    assert capsys.readouterr().out.startswith("out/corpus_text_document_00002-of-00003: ")


def array(tasks: str, task: int) -> dict[str, str]:
    """What SLURM tells a task of `--array=TASKS`."""
    numbers = [int(number) for number in tasks.split(",")]
    values = {"ID": task, "MIN": min(numbers), "MAX": max(numbers), "COUNT": len(numbers)}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_the_shard_of_an_array_task() -> None:
    task = array("0,1,2,3,4,5,6,7", 3)
    assert choose_shards(None, None, {}) == [WHOLE]
    assert choose_shards(None, None, task) == [Shard(index=3, count=8)]
    assert choose_shards(None, None, array("0", 0)) == [Shard(index=0, count=1)]
    assert choose_shards(16, None, array("3,5", 3)) == [Shard(index=3, count=16)]
    assert choose_shards(16, 5, task) == [Shard(index=5, count=16)]


@pytest.mark.parametrize("tasks", ["1,2,3", "0,4", "0,2,4,6,8"])
def test_a_part_of_an_array_does_not_say_how_many_shards_there_are(tasks: str) -> None:
    task = array(tasks, int(tasks[-1]))
    with pytest.raises(
        InputError, match=r"expected all from 0 to N - 1: submit --array=0-\(N-1\), or give --num-shards"
    ):
        choose_shards(None, None, task)


@pytest.mark.parametrize("name", ["SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_COUNT"])
@pytest.mark.parametrize("value", [None, "", "x", "4294967294x"])
def test_array_variables_that_are_missing_or_no_numbers_are_refused(name: str, value: str | None) -> None:
    task = {**array("0,1", 1), name: value}
    with pytest.raises(InputError, match=rf"{name} is .*, expected a number: give --num-shards and --shard-index"):
        choose_shards(None, None, {key: text for key, text in task.items() if text is not None})
    with pytest.raises(InputError, match="SLURM_ARRAY_TASK_ID is 'x', expected a number"):
        choose_shards(4, None, {"SLURM_ARRAY_TASK_ID": "x"})
