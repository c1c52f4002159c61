import time
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.data_args import expand_prefixes, prefixes_of, refuse_blanks, write_data_args
from megatron_miniplm.errors import CorruptArtifactError, InputError


@pytest.mark.parametrize("name", ["my data", "a\tb", "a\nb", "a\u00a0b", " a", "a "])
def test_white_space_that_megatron_splits_at_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="has white space in it, at which Megatron splits"):
        refuse_blanks([tmp_path / "fine", tmp_path / name])
    with pytest.raises(InputError, match="has white space in it"):
        write_data_args(tmp_path, [(1, tmp_path / name)])
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_with_a_blank_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my data").mkdir()
    monkeypatch.chdir(tmp_path / "my data")
    with pytest.raises(InputError, match=r"my data/corpus' has white space in it"):
        refuse_blanks([Path("corpus")])


def test_a_blend_is_read_back(tmp_path: Path) -> None:
    write_data_args(tmp_path, [(5, tmp_path / "a"), (0, tmp_path / "empty"), (7, tmp_path / "ü")])
    assert expand_prefixes([tmp_path]) == [tmp_path / "a", tmp_path / "ü"]


def test_a_blend_that_is_not_utf8_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "data_args.txt").write_bytes(b"5 /x\xff\n")
    with pytest.raises(CorruptArtifactError, match=r"data_args\.txt must be UTF-8, found byte 0xff at byte 4"):
        expand_prefixes([tmp_path])


def test_many_prefixes_take_time_in_proportion(tmp_path: Path) -> None:
    """All pairs of 20,000 would take some 20 seconds."""
    paths = [tmp_path / f"corpus_{number:05d}" for number in range(20_000)]
    started = time.process_time()
    assert expand_prefixes(paths) == paths
    assert time.process_time() - started < 5
    with pytest.raises(InputError, match="corpus_00007 stands twice in the corpus: give each prefix once"):
        expand_prefixes([*paths, paths[7]])


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
