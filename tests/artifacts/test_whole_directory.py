"""A directory is whole or absent; the dead are cleared away and the living are left alone."""

import os
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.whole_directory import whole_directory
from megatron_miniplm.errors import InputError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_it_appears_at_the_end(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "sub" / "model") as temporary:
        (temporary / "x").write_text("1")
        assert not (tmp_path / "sub" / "model").exists()
    assert names(tmp_path / "sub") == ["model"]
    assert (tmp_path / "sub" / "model" / "x").read_text() == "1"


def interrupted(path: Path) -> None:
    with whole_directory(path) as temporary:
        (temporary / "x").write_text("1")
        raise KeyboardInterrupt


def overtaken(path: Path) -> None:
    with whole_directory(path):
        os.mkdir(path)


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "model")
    assert names(tmp_path) == []


def test_a_killed_writer_is_cleared_away_and_a_living_one_is_not(tmp_path: Path) -> None:
    dead = tmp_path / f".model.{'0' * 16}.tmp"
    dead.mkdir()
    (dead / "half").write_text("1")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("1")
    link = tmp_path / f".model.{'1' * 16}.tmp"
    link.symlink_to(outside)
    other = tmp_path / f".model2.{'0' * 16}.tmp"
    other.mkdir()
    with whole_directory(tmp_path / "model") as living:
        with pytest.raises(InputError, match="was made by another process"):
            overtaken(tmp_path / "model")
        assert living.is_dir()
        os.rmdir(tmp_path / "model")
    assert names(tmp_path) == sorted(["model", link.name, other.name, "outside"])
    assert names(outside) == ["kept"]
