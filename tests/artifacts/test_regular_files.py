import os
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.regular_files import open_regular, path_below
from megatron_miniplm.errors import CorruptArtifactError, InputError


def test_a_file_and_a_link_to_it_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as stream:
            assert stream.read() == b"abc"
            assert os.get_blocking(stream.fileno())


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, kind in (("fifo", "a FIFO"), ("zero", "a character device"), ("", "a directory")):
        with pytest.raises(InputError, match=f"is {kind}, expected a regular file"):
            open_regular(tmp_path / name)


def test_a_fifo_that_takes_the_place_of_a_file_is_refused_without_waiting(tmp_path, monkeypatch):
    """What was looked at need not be what is opened."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "file").write_bytes(b"")
    looked_at = os.stat(tmp_path / "file")
    monkeypatch.setattr(os, "stat", lambda path: looked_at)
    with pytest.raises(InputError, match="is a FIFO"):
        open_regular(tmp_path / "fifo")


def test_a_missing_file_keeps_its_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_names_that_no_file_can_have(tmp_path, name):
    with pytest.raises(InputError, match="cannot be a path"):
        open_regular(tmp_path / name)


@pytest.mark.parametrize("name", ["blocks/1.npy", "./a", "a..b"])
def test_names_below_the_artifact(name):
    assert path_below(Path("store"), name, named_by=Path("store/manifest.json")) == Path("store") / name


@pytest.mark.parametrize("name", ["/dev/zero", "../other", "a/../../b", "", ".", "a\0", 7, None])
def test_names_that_lead_elsewhere(name):
    with pytest.raises(CorruptArtifactError, match=r"manifest\.json names the file .*expected a path below store"):
        path_below(Path("store"), name, named_by=Path("store/manifest.json"))
