"""The identity and the manifest of a store: what they hold, and what is refused when they disagree."""

import copy
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip, truncate
from megatron_runs import directory_bytes
from score_stores import SMALL_NLL, SMALL_NUM_TOKENS, VERSIONS, write_scores

from megatron_miniplm.artifacts import digest_values, load_manifest
from megatron_miniplm.artifacts.directories import temporaries_kept
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.reports.inspection import find_faults


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
            r"another settings \(--seq-length: 64 there, 32 here\)",
        ),
        (  # the default size of a block follows from the context
            lambda i: i["settings"].update(block_sequences=2, context_tokens=32),
            r"another settings \(--seq-length: 64 there, 32 here\)",
        ),
        (
            lambda i: i["settings"].update(block_sequences=2),
            r"another settings \(--block-sequences: 3 there, 2 here\)",
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
    assert str(raised.value).endswith(": give another --scores directory, or delete this one")
    assert directory_bytes(store.directory) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda store: truncate(store.block_path(2)), "00000002.npy has 281 bytes, expected 284: delete it and run"),
        (
            lambda store: flip(store.directory / "checksums.npy", 130),
            "checksums.npy has changed since .*: run the same",
        ),
        (lambda store: (store.directory / "checksums.npy").unlink(), "checksums.npy is missing: run the same"),
        (
            lambda store: (store.directory / "identity.json").write_text(
                (store.directory / "identity.json").read_text().replace('"num_layers": 2', '"num_layers": 3')
            ),
            "identity.json has changed since it was written",
        ),
        (
            lambda store: replace(load_manifest(store.directory), fingerprint="f" * 32).write(store.directory),
            "has fingerprint [0-9a-f]{32}, its manifest says f{32}: run the same",
        ),
        (
            lambda store: replace(load_manifest(store.directory), files={}).write(store.directory),
            "manifest.json names no checksums.npy: run the same",
        ),
        (
            lambda store: replace(load_manifest(store.directory), inputs=()).write(store.directory),
            "manifest.json names other corpora than identity.json: run the same",
        ),
        (
            lambda store: replace(load_manifest(store.directory), counts={}).write(store.directory),
            "manifest.json has no count num_sequences: run the same",
        ),
    ],
)
def test_a_finished_store_that_contradicts_itself(
    finished: ScoreStore, damage: Callable[[ScoreStore], object], message: str
) -> None:
    damage(finished)
    with pytest.raises(CorruptArtifactError, match=message):
        ScoreStore.open(finished.directory).require_complete()
    assert any(re.search(message.removesuffix(": run the same"), fault) for fault in find_faults(finished.directory))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, InputError, "scores is not a directory of scores: it has no identity.json"),
        (
            "{",
            CorruptArtifactError,
            r"identity.json is not a valid identity of scores \(.*\): score into a new directory",
        ),
        ("[]", CorruptArtifactError, r"identity.json is not a valid identity of scores \(it holds an array"),
        ('{"format_version": 3}', CorruptArtifactError, r"identity.json is damaged \(model must be an object\): score"),
        (
            '{"format_version": 3, "model": {}, "corpus": [], "settings": {"block_sequences": 0}}',
            CorruptArtifactError,
            r"identity.json is damaged \(block_sequences is 0, expected an integer from 1 to",
        ),
        (
            '{"model": {}, "corpus": [{"num_sequences": 1}], "settings": {"block_sequences": 1}}',
            CorruptArtifactError,
            "holds scores in format 1, this release reads 2 and 3: use the release that wrote them, or score into",
        ),
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
    assert manifest.counts == {"num_sequences": 7, "num_scored_sequences": 7, "num_tokens": sum(SMALL_NUM_TOKENS)}
    assert manifest.settings == finished.identity["settings"]
    assert manifest.versions == VERSIONS
    assert [(parent.role, parent.path) for parent in manifest.inputs] == [
        ("model", "../checkpoint"),
        ("corpus", "../corpus"),
    ]
    assert manifest.inputs[1].fingerprint == corpus.fingerprint()
    assert list(manifest.files) == ["identity.json", "checksums.npy"]
    assert verify_files(finished.directory, manifest) == []
    recorded = np.load(finished.directory / "checksums.npy").tolist()
    assert recorded == [zlib.crc32(finished.block_path(block).read_bytes()[:-148]) for block in range(3)]
    expected = digest_values("scores", finished.identity, manifest.files["checksums.npy"]["blake2b"])
    assert manifest.fingerprint == expected


def test_finish_removes_what_a_killed_process_left(store: ScoreStore) -> None:
    for block in range(3):
        store.write_block(block, np.ones(len(store.plan.sequences(block))), np.ones(len(store.plan.sequences(block))))
    (store.directory / "blocks" / ".00000001.npy.0123456789abcdef.tmp").write_bytes(b"half")
    dead = Leases(store.directory).__enter__()
    assert dead.claim(0)
    old, new = (store.directory / f".manifest.json.{name * 16}.tmp" for name in "01")
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    with temporaries_kept(store.directory):  # another job, which is finishing the store right now
        store.finish((), VERSIONS)
        assert not old.exists()
        assert new.exists()
    store.finish((), VERSIONS)
    assert not new.exists()
    assert {path.name for path in (store.directory / "blocks").iterdir()} == {
        f"0000000{block}.npy" for block in range(3)
    }
    assert not (store.directory / "claims").exists()
    dead.__exit__()


def test_the_fingerprint_follows_the_scores(finished: ScoreStore, corpus: IndexedCorpus, tmp_path: Path) -> None:
    changed = write_scores(tmp_path / "elsewhere" / "teacher", [corpus], [*SMALL_NLL[:-1], 0.875])
    assert changed.identity == finished.identity
    assert changed.require_complete().fingerprint != finished.require_complete().fingerprint
