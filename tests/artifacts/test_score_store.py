import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import directory_bytes, write_corpus
from score_stores import VERSIONS, identity_of, write_scores

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.artifacts.scores import SCORE_DTYPE, BlockPlan, ScoreStore
from megatron_miniplm.errors import (
    CorruptArtifactError,
    FingerprintMismatchError,
    InputError,
    MiniPLMError,
    NonFiniteScoreError,
)
from megatron_miniplm.indexed import IndexedCorpus

LENGTHS = [4, 0, 2, 1, 3, 6, 2]  # seven sequences: blocks of 3, 3 and 1
NLL = [3.5, 0.0, 1.25, 0.0, 2.5, 9.0, 0.75]
NUM_TOKENS = [3, 0, 1, 0, 2, 5, 1]


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    return write_corpus(tmp_path / "corpus", [range(length) for length in LENGTHS])


@pytest.fixture
def identity(corpus: IndexedCorpus) -> dict[str, Any]:
    return identity_of([corpus], model="teacher")


@pytest.fixture
def store(tmp_path: Path, identity: dict[str, Any]) -> ScoreStore:
    """Started, without blocks."""
    return ScoreStore.create_or_resume(tmp_path / "scores", identity)


@pytest.fixture
def finished(tmp_path: Path, corpus: IndexedCorpus) -> ScoreStore:
    return write_scores(tmp_path / "teacher", [corpus], NLL)


def test_blocks_cut_all_sequences_in_order() -> None:
    plan = BlockPlan(num_sequences=7, block_sequences=3)
    assert [list(plan.sequences(block)) for block in range(plan.num_blocks)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert BlockPlan(num_sequences=6, block_sequences=3).num_blocks == 2
    assert BlockPlan(num_sequences=0, block_sequences=3).num_blocks == 0


def test_round_trip(finished: ScoreStore) -> None:
    scores = ScoreStore.open(finished.directory).read_all()
    assert scores.dtype == SCORE_DTYPE
    assert scores["nll"].tolist() == NLL
    assert scores["num_tokens"].tolist() == NUM_TOKENS


def test_a_block_is_a_plain_npy_of_8_bytes_a_sequence(finished: ScoreStore) -> None:
    block = np.load(finished.block_path(1), allow_pickle=False)
    assert block.tolist() == list(zip(NLL[3:6], NUM_TOKENS[3:6], strict=True))
    assert block.dtype.itemsize == 8


def test_missing_blocks_and_resume(store: ScoreStore, identity: dict[str, Any]) -> None:
    assert store.missing_blocks() == [0, 1, 2]
    store.write_block(1, np.ones(3), np.ones(3))
    resumed = ScoreStore.create_or_resume(store.directory, copy.deepcopy(identity))
    assert resumed.missing_blocks() == [0, 2]
    with pytest.raises(InputError) as raised:
        resumed.require_complete()
    assert str(raised.value) == (
        f"{store.directory} is incomplete: 2 of 3 blocks are missing (first: 0): run the same scoring command again"
    )


def test_without_the_manifest_a_store_is_incomplete(finished: ScoreStore) -> None:
    (finished.directory / "manifest.json").unlink()
    with pytest.raises(InputError, match=r"0 of 3 blocks are missing \(first: none, only the manifest\): run the same"):
        finished.require_complete()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: i["model"].update(weights="f" * 32), r"another model \(weights: [0-9a-f]{8} there, ffffffff here\)"),
        (
            lambda i: i["model"]["architecture"].update(num_layers=3),
            r"another model \(architecture: num_layers: 2 there, 3 here\)",
        ),
        (
            lambda i: i["corpus"][0].update(fingerprint="f" * 32),
            r"another corpus \(fingerprint: [0-9a-f]{8} there, ffffffff here\)",
        ),
        (lambda i: i["corpus"].append(i["corpus"][0]), r"another corpus \(1 prefixes there, 2 here\)"),
        (
            lambda i: i["settings"].update(context_tokens=32),
            r"another settings \(context_tokens: 64 there, 32 here\)",
        ),
        (lambda i: i["settings"].update(new=1), r"another settings \(new: None there, 1 here\)"),
    ],
)
def test_a_stranger_is_refused_by_name(
    store: ScoreStore, identity: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    store.write_block(0, np.ones(3), np.ones(3))
    before = directory_bytes(store.directory)
    stranger = copy.deepcopy(identity)
    change(stranger)
    with pytest.raises(FingerprintMismatchError, match=message) as raised:
        ScoreStore.create_or_resume(store.directory, stranger)
    assert str(raised.value).startswith(f"{store.directory} holds scores of ")
    assert str(raised.value).endswith(": give another --miniplm-scores directory, or delete this one")
    assert directory_bytes(store.directory) == before


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])  # the last is infinite in float32
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_score_that_is_not_finite_is_refused(store: ScoreStore, value: float) -> None:
    with pytest.raises(NonFiniteScoreError) as raised:
        store.write_block(1, np.array([1.0, value, 1.0]), np.ones(3))
    assert str(raised.value) == (
        f"sequence 4 has an NLL of {value}: the model or its precision is broken; nothing of its block was written"
    )
    assert directory_bytes(store.directory).keys() == {"identity.json"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"blocks/00000001.npy cannot be read \(.*\): delete it and score again"),
        (lambda path: path.write_bytes(b""), r"blocks/00000001.npy cannot be read \(.*\): delete it and score again"),
        (
            lambda path: path.write_text("not an array"),
            r"00000001.npy cannot be read \(.*\): delete it and score again",
        ),
        (
            lambda path: np.save(path, np.zeros(2, SCORE_DTYPE)),
            r"holds \(2,\) of .*, expected \(3,\) of .*: delete it and score again",
        ),
        (lambda path: np.save(path, np.zeros(3)), r"holds \(3,\) of float64, expected \(3,\) of .*: delete it and "),
    ],
)
def test_a_damaged_block_is_named(finished: ScoreStore, damage: Callable[[Path], object], message: str) -> None:
    damage(finished.block_path(1))
    assert finished.read_block(0)["nll"].tolist() == NLL[:3]
    with pytest.raises(CorruptArtifactError, match=message):
        finished.read_all()


def test_a_damaged_block_is_not_finished(finished: ScoreStore) -> None:
    (finished.directory / "manifest.json").unlink()
    truncate(finished.block_path(2))
    with pytest.raises(CorruptArtifactError, match=r"00000002.npy cannot be read"):
        finished.finish((), VERSIONS)
    assert not (finished.directory / "manifest.json").exists()


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, InputError, "scores is not a directory of scores: it has no identity.json"),
        ("{", CorruptArtifactError, r"identity.json is damaged \(.*\): score into a new directory"),
        ("{}", CorruptArtifactError, r"identity.json is damaged \(KeyError\('corpus'\)\): score into a new directory"),
        ("[]", CorruptArtifactError, r"identity.json is damaged \(TypeError"),
    ],
)
def test_a_directory_without_identity(
    tmp_path: Path, content: str | None, error: type[MiniPLMError], message: str
) -> None:
    directory = tmp_path / "scores"
    directory.mkdir()
    if content is not None:
        (directory / "identity.json").write_text(content)
    with pytest.raises(error, match=message):
        ScoreStore.open(directory)


def test_the_manifest_holds_counts_inputs_and_checksums(finished: ScoreStore, corpus: IndexedCorpus) -> None:
    manifest = finished.require_complete()
    assert manifest == load_manifest(finished.directory)
    assert manifest.kind == "scores"
    assert manifest.counts == {"num_sequences": 7, "num_tokens": sum(NUM_TOKENS)}
    assert manifest.settings == finished.identity["settings"]
    assert manifest.versions == VERSIONS
    assert [(parent.role, parent.path) for parent in manifest.inputs] == [
        ("model", "../checkpoint"),
        ("corpus", "../corpus"),
    ]
    assert manifest.inputs[1].fingerprint == corpus.fingerprint()
    assert list(manifest.files) == [f"blocks/0000000{block}.npy" for block in range(3)]
    assert verify_files(finished.directory, manifest) == []
    truncate(finished.block_path(0))
    assert len(verify_files(finished.directory, manifest)) == 1


def test_finish_removes_what_a_killed_process_left(store: ScoreStore) -> None:
    for block in range(3):
        store.write_block(block, np.ones(len(store.plan.sequences(block))), np.ones(len(store.plan.sequences(block))))
    (store.directory / "blocks" / ".00000001.npy.4194304.tmp").write_bytes(b"half")
    store.finish((), VERSIONS)
    assert {path.name for path in (store.directory / "blocks").iterdir()} == {
        f"0000000{block}.npy" for block in range(3)
    }


def test_equal_scores_give_equal_bytes_in_any_order_of_blocks(
    store: ScoreStore, identity: dict[str, Any], tmp_path: Path
) -> None:
    other = ScoreStore.create_or_resume(tmp_path / "other", identity)
    for target, order in ((store, (0, 1, 2)), (other, (2, 0, 1))):
        for block in order:
            ids = list(target.plan.sequences(block))
            target.write_block(block, np.array(NLL)[ids], np.array(NUM_TOKENS)[ids])
        target.finish((), VERSIONS)
    assert directory_bytes(store.directory) == directory_bytes(other.directory)


def test_the_fingerprint_follows_the_scores(finished: ScoreStore, corpus: IndexedCorpus, tmp_path: Path) -> None:
    changed = write_scores(tmp_path / "elsewhere" / "teacher", [corpus], [*NLL[:-1], 0.875])
    assert changed.identity == finished.identity
    assert changed.require_complete().fingerprint != finished.require_complete().fingerprint
