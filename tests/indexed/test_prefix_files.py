import fcntl
import os
from pathlib import Path

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.prefix_files import prefix_lock


def hold(path: Path) -> int:
    """Another open file holds the lock, as another process would."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_prefix_is_locked_until_the_block_ends(tmp_path: Path) -> None:
    with prefix_lock(tmp_path / "corpus"), prefix_lock(tmp_path / "corpus"):  # who has it may ask again
        assert [path.name for path in tmp_path.iterdir()] == [".corpus.lock"]
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_holds_is_refused_by_name(tmp_path: Path) -> None:
    descriptor = hold(tmp_path / ".corpus.lock")
    busy = "corpus is being written by another process: wait for it, or stop it"
    with pytest.raises(InputError, match=busy), prefix_lock(tmp_path / "corpus"):
        pass
    assert (tmp_path / ".corpus.lock").exists()
    os.close(descriptor)
    with prefix_lock(tmp_path / "corpus"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / ".corpus.lock").symlink_to(tmp_path / "target")
    named = rf"{tmp_path}/.corpus.lock cannot be opened for writing: .*symbolic links.*: it is the lock .* delete it if"
    with pytest.raises(InputError, match=named), prefix_lock(tmp_path / "corpus"):
        pass
    assert not (tmp_path / "target").exists()
