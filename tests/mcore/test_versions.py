import importlib.metadata
import importlib.util

import pytest

from megatron_miniplm.errors import UnsupportedMegatronError
from megatron_miniplm.mcore.versions import BELOW, MINIMUM, REMEDY, MegatronInstallation, find_megatron


def pretend(monkeypatch: pytest.MonkeyPatch, version: str | None, *, has_training: bool = True) -> None:
    def installed(name: str) -> str:
        assert name == "megatron-core"
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", installed)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if has_training else None)


def test_the_installed_one_is_supported() -> None:
    installation = find_megatron()
    installation.require()
    assert MINIMUM <= installation.release < BELOW
    assert installation.has_training


@pytest.mark.parametrize("version", ["0.18.0", "0.18.3", "0.19.2", "0.19.0rc1"])
def test_supported(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    pretend(monkeypatch, version)
    installation = find_megatron()
    installation.require()
    assert installation.release in ((0, 18), (0, 19))


@pytest.mark.parametrize(
    ("version", "has_training", "message"),
    [
        (None, False, f"megatron-core is not installed: {REMEDY}"),
        (
            "0.16.1",
            False,
            f"megatron-core 0.16.1 is installed, this release supports 0.18 and 0.19: {REMEDY}",
        ),
        ("0.17.0", True, f"megatron-core 0.17.0 is installed, this release supports 0.18 and 0.19: {REMEDY}"),
        ("0.20.0", True, f"megatron-core 0.20.0 is installed, this release supports 0.18 and 0.19: {REMEDY}"),
        ("1.0.0", True, f"megatron-core 1.0.0 is installed, this release supports 0.18 and 0.19: {REMEDY}"),
        (
            "0.19.2",
            False,
            "megatron-core 0.19.2 comes without megatron.training (wheels of 0.17 and later hold it; is a "
            f"Megatron-LM checkout in front of it on PYTHONPATH?): {REMEDY}",
        ),
    ],
)
def test_unsupported(monkeypatch: pytest.MonkeyPatch, version: str | None, has_training: bool, message: str) -> None:
    pretend(monkeypatch, version, has_training=has_training)
    with pytest.raises(UnsupportedMegatronError) as raised:
        find_megatron().require()
    assert str(raised.value) == message


def test_release_compares_as_numbers() -> None:
    assert MegatronInstallation(version="0.9.1", has_training=True).release < (0, 18)
