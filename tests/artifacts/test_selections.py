"""A selection on disk: what is refused when it is opened, and what its lookup verifies."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import JSON_VALUES
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample, seal

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import CorruptArtifactError, InputError, MiniPLMError

NUM_SEQUENCES = 12


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("selections")
    corpora = [write_corpus(directory / "web", [[k, k] for k in range(NUM_SEQUENCES)])]
    for seed, name in enumerate(("teacher", "reference")):
        write_scores(directory / name, corpora, np.random.default_rng(seed).random(NUM_SEQUENCES))
    sample(directory / "teacher", directory / "reference", directory / "selection", index_only=True)
    return directory / "selection"


@pytest.fixture
def selection(pristine: Path, tmp_path: Path) -> Path:
    return copied(pristine, tmp_path / "selection")


def copied(source: Path, directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    for path in source.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


def read_all(directory: Path) -> None:
    """Read what training and tools read."""
    for prefix in Selection.open(directory).prefixes:
        prefix.values()
        prefix.weights()
        prefix.look_up(np.asarray(prefix.indices()[:1]))


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist: give a directory that difference-sampling wrote"):
        Selection.open(tmp_path / "nowhere")


def test_another_artifact(pristine: Path) -> None:
    with pytest.raises(InputError, match="teacher holds an artifact of kind scores"):
        Selection.open(pristine.parent / "teacher")


def test_a_summary_that_has_changed(selection: Path) -> None:
    path = selection / "selection.json"
    path.write_text(path.read_text().replace('"ratio": 0.5', '"ratio": 0.6'))
    with pytest.raises(CorruptArtifactError, match=r"selection\.json does not match its checksum"):
        Selection.open(selection)


@pytest.mark.parametrize("name", ["/etc/passwd", "../web.bin", "a/b", "", ".."])
def test_a_file_elsewhere(selection: Path, name: str) -> None:
    path = selection / "selection.json"
    summary = json.loads(path.read_text())
    summary["prefixes"][0]["indices"] = name
    path.write_text(json.dumps(summary))
    manifest = json.loads((selection / "manifest.json").read_text())
    del manifest["files"]["selection.json"]
    (selection / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError):
        Selection.open(selection)


def test_a_lookup_of_what_is_not_kept(selection: Path) -> None:
    (prefix,) = Selection.open(selection).prefixes
    dropped = np.setdiff1d(np.arange(NUM_SEQUENCES), prefix.indices())
    with pytest.raises(CorruptArtifactError, match="lacks a sequence that was drawn from it"):
        prefix.look_up(dropped[:1])
    values, weights = prefix.look_up(np.asarray(prefix.indices()))
    assert np.array_equal(values, prefix.values())
    assert np.array_equal(weights, prefix.weights())


@pytest.mark.parametrize("what", ["indices", "weights", "values", "checksums"])
def test_a_flipped_bit_in_any_array(selection: Path, what: str) -> None:
    path = next(selection.glob(f"*.{what}.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match=rf"{what}\.npy.*checksum"):
        read_all(selection)


@fuzz("selection", 60)
@given(data=st.data())
def test_fuzz_selection_of_bytes(pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever is changed, added or cut off: one of our errors, or nothing of it is read."""
    directory = copied(pristine, tmp_path_factory.mktemp("fuzzed"))
    path = data.draw(st.sampled_from(sorted(directory.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(content) - 1)))
        content[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    path.write_bytes(content)
    with suppress(MiniPLMError):
        read_all(directory)


@fuzz("selection", 60)
@given(data=st.data())
def test_fuzz_selection_of_sealed_summaries(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any value anywhere in `selection.json`, under a manifest that agrees with it."""
    directory = copied(pristine, tmp_path_factory.mktemp("fuzzed"))
    summary: dict[str, Any] = json.loads((directory / "selection.json").read_text())
    target = data.draw(st.sampled_from([summary, summary["prefixes"][0]]))
    target[data.draw(st.sampled_from(sorted(target)))] = data.draw(JSON_VALUES)
    text = json.dumps(summary)
    (directory / "selection.json").write_text(text)
    manifest = json.loads((directory / "manifest.json").read_text())
    from megatron_miniplm.artifacts.manifest import checksum_of

    manifest["files"]["selection.json"] = checksum_of(directory / "selection.json")
    (directory / "manifest.json").write_text(json.dumps(manifest))
    with suppress(MiniPLMError):
        read_all(directory)


def test_a_selection_made_whole_by_hand(selection: Path) -> None:
    """What the other tests rely on."""
    seal(selection)
    read_all(selection)
