from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import run_tool


@pytest.fixture(autouse=True)
def prefixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("web", "code"):
        write_corpus(Path(name), [[index, index + 1] for index in range(20)])


def test_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--input", "web", "code", "--reference-fraction", "0.1", "--seed", "7", "--output", "split"]
    assert run_tool("split-reference", flags) == 0
    assert capsys.readouterr().out == "split: 4 sequences in reference/, 36 in pool/\n"
    assert len((tmp_path / "split" / "pool" / "data_args.txt").read_text().splitlines()) == 2


def test_a_part_can_be_split_again_by_its_directory(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("split-reference", ["--input", "web", "--reference-fraction", "0.5", "--output", "first"]) == 0
    assert (
        run_tool("split-reference", ["--input", "first/pool", "--reference-fraction", "0.5", "--output", "second"]) == 0
    )
    assert capsys.readouterr().out.splitlines()[1] == "second: 5 sequences in reference/, 5 in pool/"


def test_a_directory_stands_for_its_prefixes_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    for name, inputs in (("directory", ["."]), ("prefixes", ["code", "web"])):
        flags = ["--input", *inputs, "--reference-fraction", "0.1", "--output", name]
        assert run_tool("split-reference", flags) == 0
    first, second = (sorted(path.name for path in Path(name, "pool").iterdir()) for name in ("directory", "prefixes"))
    assert first == second
    assert len(first) == 2 * 3 + 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--input", "web", "--reference-fraction", "1"], "--reference-fraction 1.0 must lie in (0, 1)"),
        (
            ["--input", "web", "--reference-fraction", "0.01"],
            "--reference-fraction 0.01 of 20 sequences leaves one part",
        ),
        (["--input", "web", "web"], "web stands twice in the corpus: give each prefix once"),
        (
            ["--input", "empty"],
            "there is no prefix to split: give prefixes, or a directory that holds some, to --input",
        ),
        (["--input", "web", "--output", "my split"], "'"),
        (["--input", "none"], "none.idx does not exist: give the prefix of a .bin/.idx pair, without extension"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    Path("empty").mkdir()
    assert run_tool("split-reference", ["--output", "split", *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "split").exists()
    assert not (tmp_path / "my split").exists()
