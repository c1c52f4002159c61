"""What the patch of Megatron's dataset builder makes of a cache that cannot be written."""

from pathlib import Path
from typing import Any

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.training.plugin import _build_generic_dataset


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """Megatron makes a bare Exception of it, which names an attribute of a class."""
    config = type("Config", (), {"path_to_cache": None})()

    def original(cls: Any, is_built_on_rank: Any, synchronize_ranks: bool, *args: Any) -> Any:
        cause = PermissionError(13, "Permission denied", str(tmp_path / "cache"))
        raise Exception("Failed to write dataset materials to the data cache directory") from cause

    build = _build_generic_dataset(original).__func__
    with pytest.raises(InputError, match=r"cache: the index cache .*\(Permission denied\): give --data-cache-path DIR"):
        build(object, lambda: True, True, config)


def test_other_errors_pass(tmp_path: Path) -> None:
    def original(*args: Any) -> Any:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _build_generic_dataset(original).__func__(object, lambda: True, True, object())
