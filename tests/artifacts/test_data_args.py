"""What Megatron can read of `data_args.txt`, and what is refused before it is written."""

import shutil
from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.artifacts.data_args import (
    DATA_ARGS,
    expand_prefixes,
    prefixes_of,
    require_listed_prefixes,
    require_readable,
    write_data_args,
)
from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.indexed.merge import blend_prefixes


def test_prefixes_are_read_back_in_their_order_without_those_that_are_empty(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / name, [[1, 2, 3]]) for name in ("b", "a")]
    write_data_args(tmp_path, [(3, corpora[0].prefix), (0, tmp_path / "empty"), (3, corpora[1].prefix)])
    assert (tmp_path / "data_args.txt").read_text() == f"3 {tmp_path}/b\n3 {tmp_path}/a\n"
    assert expand_prefixes([tmp_path]) == [tmp_path / "b", tmp_path / "a"]


def test_prefixes_that_moved_with_their_list_are_found_there(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    prefixes = [write_corpus(old / name, [[1, 2, 3]]).prefix for name in ("a", "b")]
    write_data_args(old, [(3, prefix) for prefix in prefixes])
    copied = shutil.copytree(old, new)
    assert expand_prefixes([copied]) == prefixes
    shutil.rmtree(old)
    assert expand_prefixes([new]) == [new / "a", new / "b"]


def test_training_is_told_of_a_list_that_was_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Megatron itself looks for the old paths; the command of the message makes a list that it can read."""
    corpora = [write_corpus(tmp_path / "corpora" / name, [[1, 2, 3]]) for name in ("a", "b")]
    blend_prefixes([corpus.prefix for corpus in corpora], tmp_path / "blend")
    materialize([tmp_path / "blend"], tmp_path / "old")
    require_listed_prefixes(tmp_path / "old" / DATA_ARGS)
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(InputError, match=rf"new/data_args.txt names {tmp_path}/old/a, which does not exist") as raised:
        require_listed_prefixes(tmp_path / "new" / DATA_ARGS)
    command = str(raised.value).partition("write a new list: miniplm ")[2].replace("NEW_DIRECTORY", f"{tmp_path}/list")
    assert run_tool(command.split()[0], command.split()[1:]) == 0
    capsys.readouterr()
    assert (tmp_path / "list" / DATA_ARGS).read_text() == f"3 {tmp_path}/new/a\n3 {tmp_path}/new/b\n"
    require_listed_prefixes(tmp_path / "list" / DATA_ARGS)


def test_a_corpus_that_moved_away_from_its_list_is_named(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpora" / "a", [[1, 2, 3]])
    blend_prefixes([corpus.prefix], tmp_path / "blend")
    shutil.move(tmp_path / "corpora", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"corpora/a, which does not exist.*--input PREFIX \.\.\. --as-data-args"):
        require_listed_prefixes(tmp_path / "blend" / DATA_ARGS)


def test_lists_of_the_users_are_megatrons_business(tmp_path: Path) -> None:
    (tmp_path / DATA_ARGS).write_text("somewhere/a somewhere/b s3://bucket/c\n")
    require_listed_prefixes(tmp_path / DATA_ARGS)


@pytest.mark.parametrize("name", ["my data", "tab\there", "line\nbreak", "no\u00a0break", "ideographic\u3000space"])
def test_a_path_that_would_be_split_is_refused(tmp_path: Path, name: str) -> None:
    """`str.split`, by which Megatron reads the file, knows the blanks of Unicode too."""
    with pytest.raises(InputError, match=r"contains a blank, tab or line break.*choose a path without one"):
        write_data_args(tmp_path, [(1, tmp_path / name)])
    assert not (tmp_path / "data_args.txt").exists()


@pytest.mark.parametrize(
    "command",
    [
        "split-reference --reference-fraction 0.5 --input {corpus} --output {directory}",
        "materialize --input {corpus} --output {directory}",
        "convert-tokenization --tokenizer-type NullTokenizer --vocab-size 9 --input {corpus} --output {directory}",
        "difference-sampling --ratio 0.5 --teacher-scores t --reference-scores r --output {directory}",
    ],
)
def test_commands_refuse_such_a_directory_before_they_write(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, directory = write_corpus(tmp_path / "corpus", [[1, 2], [3, 4]]).prefix, tmp_path / "my data"
    name, *words = [word.format(corpus=corpus, directory=directory) for word in command.split()]
    assert run_tool(name, words) == 2
    assert f"{str(directory)[:-5]}" in (shown := capsys.readouterr().err)
    assert "contains a blank" in shown
    assert not directory.exists()


def test_a_list_of_prefixes_with_a_blank_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = write_corpus(tmp_path / "my corpus", [[1, 2]]).prefix
    assert run_tool("merge-datasets", ["--input", str(prefix), "--as-data-args", str(tmp_path / "blend")]) == 2
    assert "contains a blank" in capsys.readouterr().err
    assert not (tmp_path / "blend" / "data_args.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"5 /x\xff\n", "is not UTF-8 \\(byte 4\\)"),
        (b"5\n", "must hold pairs"),
        (b"/x 5\n", "must hold pairs"),
        ("\u0665 /x\n".encode(), "must hold pairs"),
        (b"5 /x\0y\n", "zero byte"),
    ],
)
def test_a_damaged_list(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / DATA_ARGS).write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=message):
        expand_prefixes([tmp_path])


def test_a_list_that_is_a_device(tmp_path: Path) -> None:
    (tmp_path / DATA_ARGS).symlink_to("/dev/zero")
    with pytest.raises(MiniPLMError, match="expected a regular file"):
        expand_prefixes([tmp_path])


def test_many_prefixes_take_no_time(tmp_path: Path) -> None:
    """Comparing each with each would take minutes."""
    prefixes = [tmp_path / str(number) for number in range(20_000)]
    assert len(expand_prefixes(prefixes)) == 20_000
    with pytest.raises(InputError, match="7 stands twice"):
        expand_prefixes([*prefixes, tmp_path / "7"])


def test_a_working_directory_with_a_blank_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    with pytest.raises(InputError, match=r"my data/corpus' contains a blank"):
        require_readable(Path("corpus"))


def test_a_directory_stands_for_its_prefixes_by_name(tmp_path: Path) -> None:
    for name in ("b.idx", "a.idx", "out.idx", "c.bin"):
        (tmp_path / name).touch()
    assert prefixes_of([tmp_path], without=tmp_path / "out") == [tmp_path / "a", tmp_path / "b"]
    assert prefixes_of([tmp_path / "b.idx", tmp_path / "out"], without=tmp_path / "out") == [
        tmp_path / "b",
        tmp_path / "out",
    ]
    write_data_args(tmp_path, [(1, tmp_path / "x")])
    assert prefixes_of([tmp_path]) == [tmp_path]


def test_one_corpus_under_two_names_is_given_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_corpus(tmp_path / "corpus", [[1, 2], [3]])
    for suffix in (".bin", ".idx"):
        (tmp_path / f"other{suffix}").symlink_to(f"corpus{suffix}")
    monkeypatch.chdir(tmp_path)
    for twin in (tmp_path / "corpus", Path("other"), Path("corpus")):
        with pytest.raises(InputError, match="stands twice in the corpus"):
            expand_prefixes(["corpus", twin])


def test_a_root_is_no_prefix(tmp_path: Path) -> None:
    (tmp_path / "data_args.txt").write_text("5 /\n")
    with pytest.raises(CorruptArtifactError, match="names a directory for a prefix"):
        expand_prefixes([tmp_path])
