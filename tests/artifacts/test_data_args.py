from pathlib import Path

import pytest

from megatron_miniplm.artifacts.data_args import DATA_ARGS, expand_prefixes, refuse_unreadable, write_data_args
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError


@pytest.mark.parametrize("name", ["my data", "tab\tbed", "line\nfeed", "non-breaking\u00a0", "wide\u3000blank"])
def test_a_path_that_would_be_two_words_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="has a blank, tab or newline in it, at which Megatron splits"):
        refuse_unreadable([tmp_path / "fine", tmp_path / name / "prefix"])
    with pytest.raises(InputError):
        write_data_args(tmp_path, [(5, tmp_path / name)])
    assert not (tmp_path / DATA_ARGS).exists()


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    prefixes = [tmp_path / "web", tmp_path / "ünïcode"]
    write_data_args(tmp_path, [(5, prefixes[0]), (0, tmp_path / "none"), (7, prefixes[1])])
    assert expand_prefixes([tmp_path]) == prefixes


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
