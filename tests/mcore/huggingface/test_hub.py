"""Names of models on the hub: taken from the cache of this machine, never downloaded."""

from pathlib import Path

import huggingface_hub.constants
import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.hub import locate

NAME = Path("Organisation/Model-0.5B")
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layout of huggingface_hub's cache; any access to the network would fail."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def fill(cache: Path) -> Path:
    model = cache / "models--Organisation--Model-0.5B"
    snapshot = model / "snapshots" / REVISION
    for directory in (snapshot, model / "refs", model / "blobs"):
        directory.mkdir(parents=True)
    (model / "refs" / "main").write_text(REVISION)
    (model / "blobs" / "1").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    return snapshot


def test_a_model_in_the_cache(cache: Path) -> None:
    snapshot = fill(cache)
    assert locate(NAME, "config.json") == snapshot


def test_a_model_that_is_not_there_is_to_be_downloaded_first(cache: Path) -> None:
    with pytest.raises(InputError, match=r"download the model first: hf download Organisation/Model-0\.5B$"):
        locate(NAME, "config.json")
    fill(cache)
    with pytest.raises(InputError, match="hf download"):
        locate(NAME, "another.json")


def test_a_directory_of_that_name_is_what_it_is(cache: Path) -> None:
    fill(cache)
    (cache.parent / NAME).mkdir(parents=True)
    assert locate(NAME, "config.json") == NAME


@pytest.mark.parametrize("path", ["model", "/models/x", "../a/b", "a/b/c", "a/b--c", "a/.b", "a b/c"])
def test_other_paths_are_not_names(cache: Path, path: str) -> None:
    assert locate(Path(path), "config.json") == Path(path)
