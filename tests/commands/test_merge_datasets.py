from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus


@pytest.fixture(autouse=True)
def prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("corpora").mkdir()
    for number, name in enumerate(("web", "code")):
        write_corpus(Path("corpora") / name, [[number, index] for index in range(5)])


def first_tokens(prefix: str) -> list[int]:
    corpus = IndexedCorpus.open(prefix)
    return [int(corpus.sequence(index)[0]) for index in range(len(corpus))]


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("merge-datasets", ["--input", "corpora/web", "corpora/code", "--output-prefix", "merged"]) == 0
    assert capsys.readouterr().out == "merged: 10 sequences, 20 tokens of 2 prefixes\n"
    assert first_tokens("merged") == [0] * 5 + [1] * 5


def test_a_directory_stands_for_its_prefixes_by_name_without_the_output() -> None:
    for _ in range(2):
        assert run_tool("merge-datasets", ["--input", "corpora", "--output-prefix", "corpora/merged"]) == 0
        assert first_tokens("corpora/merged") == [1] * 5 + [0] * 5


def test_a_glob_of_index_files_names_prefixes() -> None:
    inputs = sorted(map(str, Path("corpora").glob("*.idx")))
    assert run_tool("merge-datasets", ["--input", *inputs, "--output-prefix", "merged"]) == 0
    assert first_tokens("merged") == [1] * 5 + [0] * 5


def test_a_blend_stands_for_its_prefixes_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("merge-datasets", ["--input", "corpora/web", "corpora/code", "--as-data-args", "blend"]) == 0
    assert run_tool("merge-datasets", ["--input", "blend", "--output-prefix", "merged"]) == 0
    assert first_tokens("merged") == [0] * 5 + [1] * 5
    assert run_tool("inspect", ["blend", "--check"]) == 0
    assert "ok\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "corpora/web", "corpora/web"], "corpora/web stands twice in the corpus: give each prefix once"),
        (["--input", "corpora", "corpora/web"], "corpora/web stands twice in the corpus: give each prefix once"),
        (["--input", "none"], "none.idx does not exist: give the prefix of a .bin/.idx pair, without extension"),
        (["--input", "."], "there is no prefix to merge: give prefixes, or a directory that holds some, to --input"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run_tool("merge-datasets", [*flags, "--output-prefix", "merged"]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not Path("merged.idx").exists()
