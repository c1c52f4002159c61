"""One writer of a directory at a time, whatever earlier ones have left."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.atomic import temporary_beside
from megatron_miniplm.artifacts.directories import (
    LOCK,
    remove_dead_temporaries,
    remove_dead_writer,
    sole_writer,
    sole_writer_of_file,
    temporaries_kept,
    whole_directory,
)
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.prefix_files import prefix_lock

NOBODY = 65534


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
    with pytest.raises(InputError, match=r"symbolic links.*: it is the lock of a writer"), sole_writer(tmp_path):
        pass
    assert not (tmp_path / "elsewhere").exists()


def _without_rights(body: Callable[[], object]) -> str:
    """What a user without any rights is told."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def run() -> None:
        if os.geteuid() == 0:
            os.setegid(NOBODY)
            os.seteuid(NOBODY)
        try:
            body()
            theirs.send("done")
        except InputError as error:
            theirs.send(str(error))

    process = fork.Process(target=run)
    process.start()
    theirs.close()
    said = str(ours.recv())
    process.join()
    return said


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that every user may enter: those of pytest are private."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.parametrize("kind", ["directory", "file", "prefix"])
def test_a_directory_that_cannot_be_written_is_named_with_a_remedy(reachable: Path, kind: str) -> None:
    (reachable / "output").mkdir()
    (reachable / "output").chmod(0o555)
    lock = {"directory": sole_writer, "file": sole_writer_of_file, "prefix": prefix_lock}[kind]
    path = reachable / "output" if kind == "directory" else reachable / "output" / "name"

    def write() -> None:
        with lock(path):
            pass

    said = _without_rights(write)
    assert said.startswith(f"{reachable}/output/.")
    assert said.endswith(
        f"lock cannot be opened for writing: Permission denied: make {reachable}/output writable for this user, or "
        "choose another output"
    )


def test_the_lock_of_another_user_is_named_with_a_remedy(reachable: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs a second user")
    (reachable / LOCK).write_text("")
    (reachable / LOCK).chmod(0o600)

    def write() -> None:
        with sole_writer(reachable):
            pass

    assert _without_rights(write) == (
        f"{reachable}/{LOCK} cannot be opened for writing: Permission denied: it is the lock of a writer "
        "(owner: user 0): wait until it is gone, delete it if nobody writes there any more, or choose another output"
    )


def test_the_writer_of_a_directory_leaves_that_of_a_file_alone(tmp_path: Path) -> None:
    with sole_writer_of_file(tmp_path / "curve.json"):
        temporary_beside(tmp_path / "curve.json").write_text("half")
        with sole_writer(tmp_path):
            pass
        assert len(list(tmp_path.glob(".curve.json.*.tmp"))) == 1
    with sole_writer(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]


def test_a_file_has_one_writer_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path, foreign = tmp_path / "scores.parquet", tmp_path / ".scores.parquet.mine.tmp"
    foreign.write_text("a user's")
    temporary_beside(path).write_text("of a killed writer")
    temporary_beside(tmp_path / "other.parquet").write_text("perhaps of a living writer")
    with sole_writer_of_file(path):
        assert not list(tmp_path.glob(".scores.parquet.????????????????.tmp"))
        assert len(list(tmp_path.glob(".other.parquet.*"))) == 1
        with pytest.raises(InputError, match="parquet is being written by another process"), sole_writer_of_file(path):
            pass
    assert foreign.exists()
    assert not list(tmp_path.glob("*.lock"))


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


def test_temporaries_of_the_dead_are_removed_once_nobody_writes(tmp_path: Path) -> None:
    dead, foreign = temporary_beside(tmp_path / "manifest.json"), tmp_path / ".mine.tmp"
    for path in (dead, foreign):
        path.write_text("half")
    with temporaries_kept(tmp_path), temporaries_kept(tmp_path):  # of any number of processes
        remove_dead_temporaries(tmp_path)
        assert names(tmp_path) == sorted([dead.name, foreign.name])
    remove_dead_temporaries(tmp_path)
    assert names(tmp_path) == [foreign.name]


def test_what_a_killed_writer_has_left_in_a_finished_directory(tmp_path: Path) -> None:
    with sole_writer(tmp_path):
        (tmp_path / "finished").write_text("1")
        dead = temporary_beside(tmp_path / "finished")
        dead.write_text("half")
        remove_dead_writer(tmp_path)
        assert names(tmp_path) == sorted([LOCK, dead.name, "finished"])
    (tmp_path / LOCK).touch()
    remove_dead_writer(tmp_path)
    assert names(tmp_path) == ["finished"]
    remove_dead_writer(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_directory_that_another_process_makes_just_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace = tmp_path / "model", os.replace

    def late_replace(source: Path, target: Path) -> None:
        (target / "other").mkdir(parents=True)
        replace(source, target)

    monkeypatch.setattr(os, "replace", late_replace)
    with pytest.raises(InputError, match="model was made by another process meanwhile"), whole_directory(path) as half:
        (half / "file").write_text("1")
    assert names(tmp_path) == ["model"]
    assert names(path) == ["other"]
