"""A selection on disk: what is refused when it is opened, and what its lookup verifies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import NO_FILES, damaged_bytes, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample, seal

from megatron_miniplm.artifacts.manifest import checksum_of
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.reports.explain import explain
from megatron_miniplm.reports.report import write_report
from megatron_miniplm.selection.difference import warning_of
from megatron_miniplm.training.document_index import Phase
from megatron_miniplm.training.refinement import Pool

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


def read_as_training_does(directory: Path) -> None:
    """Compute what schedules and warnings need."""
    warning_of(Selection.open(directory).summary, is_difference=True)
    for ratio, temperature in ((0.01, None), (0.25, None), (0.5, 0.5)):
        pool = Pool(
            selection=Selection.open(directory), phases=(Phase(start_sample=0, ratio=ratio, temperature=temperature),)
        )
        pool.check()
        for prefix in pool.selection.prefixes:
            pool.keeps(prefix, slice(None), 0)


def seal_summary(directory: Path) -> None:
    """Make the manifest agree with a `selection.json` that was changed."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"]["selection.json"] = checksum_of(directory / "selection.json")
    (directory / "manifest.json").write_text(json.dumps(manifest))


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
    """Whatever is changed, added, cut off or replaced by no file: one of our errors, or nothing of it is read."""
    directory = copied(pristine, tmp_path_factory.getbasetemp() / "fuzzed")
    path = data.draw(st.sampled_from(sorted(directory.iterdir())))
    content = path.read_bytes()
    if data.draw(st.integers(0, 9)) == 9:
        put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
    else:
        path.write_bytes(data.draw(damaged_bytes(content)))
    refusal_of(lambda: read_all(directory))
    put(path, content)


SUMMARY_FIELDS = (
    *("format_version", "from_scores", "score_reduction", "sampling", "per_domain", "drop_negative", "weights"),
    *("repeat", "index_only", "seen_by_reference", "keep_domains", "drop_domains", "min_tokens"),
    *("num_sequences", "num_eligible", "num_kept", "num_kept_tokens", "num_scored_tokens", "num_kept_scored_tokens"),
    *("num_seen_by_reference", "mean_value", "mean_kept_value", "lowest_kept_value", "negative_fraction"),
    *("thresholds", "prefixes", "prefixes/0", "thresholds/0", "thresholds/0/key", "thresholds/0/sequence"),
    *("prefixes/0/weighted_tokens", "prefixes/0/path", "prefixes/0/view", "prefixes/0/num_tokens"),
)


@pytest.mark.parametrize("place", SUMMARY_FIELDS)
@pytest.mark.parametrize("value", [[3], {"a": 1}])
def test_a_field_of_another_type(selection: Path, place: str, value: Any) -> None:
    """Refused where it is read, though the checksum is right."""
    summary = json.loads((selection / "selection.json").read_text())
    *outer, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    target: Any = summary
    for part in outer:
        target = target[part]
    target[last] = value
    (selection / "selection.json").write_text(json.dumps(summary))
    seal_summary(selection)
    with pytest.raises(CorruptArtifactError, match=r"selection\.json (is damaged|has format version)"):
        Selection.open(selection)


@pytest.mark.parametrize(
    ("place", "change"), [("num_kept", 1), ("num_kept_tokens", -1), ("num_eligible", -7), ("num_sequences", 1)]
)
def test_counts_that_contradict_each_other(selection: Path, place: str, change: int) -> None:
    summary = json.loads((selection / "selection.json").read_text())
    summary[place] += change
    (selection / "selection.json").write_text(json.dumps(summary))
    seal_summary(selection)
    with pytest.raises(CorruptArtifactError, match=r"selection\.json is damaged \(num_"):
        Selection.open(selection)


def test_fuzz_selection_of_sealed_summaries(pristine: Path) -> None:
    """Any change to `selection.json`, under a manifest that agrees with it, is read or refused by all that read it."""
    directory = copied(pristine, pristine.parent / "sealed")
    summary = json.loads((directory / "selection.json").read_text())
    write_report(directory, directory.parent / "report", num_examples=1)

    @fuzz("selection", 60)
    @given(data=st.data())
    def damage(data: st.DataObject) -> None:
        content = data.draw(damaged_json(summary))
        (directory / "selection.json").write_bytes(content)
        seal_summary(directory)
        refusal_of(lambda: read_all(directory))
        refusal_of(lambda: read_as_training_does(directory))
        refusal_of(lambda: explain(Selection.open(directory), [0, NUM_SEQUENCES - 1]))
        refusal_of(lambda: write_report(directory, directory.parent / "report", num_examples=1))
        assert run_tool("inspect", [str(directory)]) in (0, 2)

    damage()


def test_a_selection_made_whole_by_hand(selection: Path) -> None:
    """What the other tests rely on."""
    seal(selection)
    read_all(selection)
