"""One writer of a directory at a time, whatever earlier ones have left."""

import multiprocessing
import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.atomic import temporary_beside
from megatron_miniplm.artifacts.directory_lock import LOCK, sole_writer
from megatron_miniplm.errors import InputError


def _hold(directory: Path, pipe: Connection) -> None:
    with sole_writer(directory):
        temporary_beside(directory / "half").write_bytes(b"half")
        pipe.send("held")
        pipe.recv()


def test_another_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    holder = fork.Process(target=_hold, args=(tmp_path / "output", theirs))
    holder.start()
    try:
        assert ours.recv() == "held"
        with (
            pytest.raises(InputError, match=r"output is being written by another process"),
            sole_writer(tmp_path / "output"),
        ):
            pass
        assert len(list((tmp_path / "output").iterdir())) == 2, "what the first is writing stays"
    finally:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    assert (tmp_path / "output" / LOCK).exists(), "as a kill leaves it"
    with sole_writer(tmp_path / "output"):
        assert [path.name for path in (tmp_path / "output").iterdir()] == [LOCK], "half a file was removed"


def test_nothing_stays_of_a_writer_that_wrote_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), sole_writer(tmp_path / "output"):
        raise ZeroDivisionError
    assert not (tmp_path / "output").exists()


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / ".mine.tmp").write_text("a user's")
    with sole_writer(tmp_path):
        (tmp_path / "written").write_text("x")
    assert {path.name for path in tmp_path.iterdir()} == {".mine.tmp", "written"}


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match="file is not a directory: give another --output"),
        sole_writer(tmp_path / "file"),
    ):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"), sole_writer(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()
