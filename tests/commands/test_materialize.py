from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import write_view


@pytest.fixture(autouse=True)
def view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(Path("web"), [[index, index + 1] for index in range(20)])
    return write_view(corpus, np.array([3, 4, 9]), Path("views"), label="refined", settings={})


def test_what_is_printed(view: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run_tool("materialize", ["--input", str(view), "--output", "copy"]) == 0
        assert capsys.readouterr().out == "copy: 3 sequences, 6 tokens in 1 corpora\n"
    tokens = np.fromfile(f"copy/{view.name}.bin", np.uint16)
    assert tokens.tolist() == [3, 4, 4, 5, 9, 10]
    assert run_tool("inspect", ["copy", "--check"]) == 0
    assert "ok\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--input", "none", "--output", "copy"],
            "none does not exist: give prefixes of .bin/.idx pairs, directories with",
        ),
        (["--input", ".", "--output", "copy"], ". is a directory without data_args.txt: give prefixes, or a split or"),
        (["--input", "web", "web", "--output", "copy"], "web and web would both be copy/web: give each prefix once"),
        (["--input", "web", "--output", "."], "web.bin exists without web.manifest.json, so it is another tool's"),
    ],
)
def test_errors_are_one_line(capsys: pytest.CaptureFixture[str], flags: list[str], message: str) -> None:
    assert run_tool("materialize", flags) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not Path("copy").exists()
