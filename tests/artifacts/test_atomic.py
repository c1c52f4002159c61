import errno
import json
import os
import re
import secrets
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatron_miniplm.artifacts import atomic_output, write_array, write_json, write_text
from megatron_miniplm.artifacts.atomic import array_output, create_over, write_once


def names(directory):
    return [path.name for path in directory.iterdir()]


def test_content_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_output(path) as stream:
        stream.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_no_temporary(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail_in_mid_write():
        with atomic_output(path) as stream:
            stream.write(b"half")
            raise error

    with pytest.raises(error):
        fail_in_mid_write()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


WRITE_HALF_AND_WAIT = """
import sys, time
from pathlib import Path
from megatron_miniplm.artifacts import atomic_output
with atomic_output(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_kill_in_mid_write_leaves_the_target_untouched(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with subprocess.Popen([sys.executable, "-c", WRITE_HALF_AND_WAIT, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    leftover, target = sorted(names(tmp_path))
    assert re.fullmatch(r"\.file\.[0-9a-f]{16}\.tmp", leftover)
    assert target == "file"
    write_text(path, "new")  # the leftover is in nobody's way
    assert path.read_bytes() == b"new"


def test_two_writers_each_leave_a_whole_file(tmp_path):
    """Of one process here: containers on two hosts may have the same process id, too."""
    path = tmp_path / "file"
    with atomic_output(path) as first:
        first.write(b"first")
        with atomic_output(path) as second:
            second.write(b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_what_lies_under_a_name_that_can_be_guessed_is_replaced(tmp_path: Path, make_link: Callable[..., None]) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    make_link(tmp_path / "victim", tmp_path / "guessed")
    with create_over(tmp_path / "guessed") as stream:
        stream.write(b"new")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "guessed").read_bytes() == b"new"


def test_a_link_that_is_made_under_the_random_name_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    monkeypatch.setattr(secrets, "token_hex", lambda num_bytes: "0" * 16)
    (tmp_path / f".file.{'0' * 16}.tmp").symlink_to("victim")
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "file", "new")
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_directory_that_cannot_be_synced_is_named_and_has_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_directories(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    writers = {"atomic": lambda path: write_text(path, "new"), "once": lambda path: write_once(path, b"new")}
    for name, write in writers.items():
        path = tmp_path / name / "file"
        path.parent.mkdir()
        with pytest.raises(OSError, match="Input/output error") as caught:
            write(path)
        assert str(caught.value.filename).startswith(str(path.parent))
        assert path.read_bytes() == b"new"
        assert names(path.parent) == ["file"]


def test_json_keeps_order_and_characters(tmp_path):
    write_json(tmp_path / "file", {"b": "é", "a": [1]})
    assert (tmp_path / "file").read_text(encoding="utf-8") == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", json.loads("NaN"))
    assert names(tmp_path) == []


def test_array_round_trip_in_npy_1_0(tmp_path):
    array = np.arange(6, dtype="<f4").reshape(2, 3).T
    write_array(tmp_path / "file.npy", array)
    assert np.array_equal(np.load(tmp_path / "file.npy"), array)
    assert (tmp_path / "file.npy").read_bytes().startswith(b"\x93NUMPY\x01\x00")


@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 5], [100_000] * 3])
def test_an_array_in_pieces_has_the_bytes_of_one(tmp_path: Path, sizes: list[int]) -> None:
    pieces = [np.arange(size) for size in sizes]
    with array_output(tmp_path / "pieces.npy", np.dtype("<f4")) as append:
        for piece in pieces:
            append(piece)
    write_array(tmp_path / "whole.npy", np.concatenate([np.zeros(0), *pieces]).astype("<f4"))
    assert (tmp_path / "pieces.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert np.load(tmp_path / "pieces.npy").shape == (sum(sizes),)
