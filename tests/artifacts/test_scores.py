import copy
import errno
import os
import re
import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron_runs import directory_bytes, write_corpus
from score_stores import VERSIONS, identity_of, write_scores

from megatron_miniplm.artifacts import digest_values, load_manifest, scores
from megatron_miniplm.artifacts.atomic import write_once
from megatron_miniplm.artifacts.directories import temporaries_kept
from megatron_miniplm.artifacts.leases import Holder, Leases, in_flight
from megatron_miniplm.artifacts.manifest import ArtifactInput, verify_files
from megatron_miniplm.artifacts.score_blocks import default_block_sequences
from megatron_miniplm.artifacts.score_records import identity_bytes
from megatron_miniplm.artifacts.scores import NOT_SCORED, SCORE_DTYPE, BlockPlan, ScoreStore
from megatron_miniplm.errors import (
    CorruptArtifactError,
    FingerprintMismatchError,
    InputError,
    MiniPLMError,
    NonFiniteScoreError,
)
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.reports.inspection import find_faults

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


def inputs_of(corpus: IndexedCorpus) -> tuple[ArtifactInput, ...]:
    return (ArtifactInput(role="corpus", path="../corpus", fingerprint=corpus.fingerprint()),)


def test_blocks_cut_all_sequences_in_order() -> None:
    plan = BlockPlan(num_sequences=7, block_sequences=3)
    assert [list(plan.sequences(block)) for block in range(plan.num_blocks)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert BlockPlan(num_sequences=6, block_sequences=3).num_blocks == 2
    assert BlockPlan(num_sequences=0, block_sequences=3).num_blocks == 0


@pytest.mark.parametrize(
    ("num_sequences", "mean_tokens", "expected_sequences"),
    [
        (10, 100, 10),  # too small to be cut
        (4000, 512, 128),  # 2 M tokens: blocks of 64 windows of 1,024
        (10**6, 512, 245),  # 0.5 G: 4,096 blocks
        (10**8, 1024, 4096),  # 100 G: blocks of 4,096 windows
        (10**8, 256, 4 * 4096),
        (5, 10**6, 1),
        (0, 0, 1),
    ],
)
def test_blocks_are_sized_by_tokens(num_sequences: int, mean_tokens: int, expected_sequences: int) -> None:
    found = default_block_sequences(
        num_sequences=num_sequences, num_tokens=num_sequences * mean_tokens, context_tokens=1024
    )
    assert found == expected_sequences


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
            r"another settings \(--seq-length: 64 there, 32 here\)",
        ),
        (  # the default size of a block follows from the context
            lambda i: i["settings"].update(block_sequences=2, context_tokens=32),
            r"another settings \(--seq-length: 64 there, 32 here\)",
        ),
        (
            lambda i: i["settings"].update(block_sequences=2),
            r"another settings \(--miniplm-block-sequences: 3 there, 2 here\)",
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


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


REMEDY = "delete it and run the same scoring command again"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "has 297 bytes, expected 300"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "has 301 bytes, expected 300"),
        (lambda path: path.write_bytes(b""), "has 0 bytes, expected 300"),
        (Path.unlink, r"cannot be read \(No such file or directory\)"),
        (lambda path: np.save(path, np.zeros(3, SCORE_DTYPE)), "has 152 bytes, expected 300"),  # of format 1
        (lambda path: flip(path, 60), r"does not hold \(3,\) of .*nll.* and a seal"),
        (lambda path: flip(path, 200), r"does not hold \(3,\) of .*nll.* and a seal"),
        (lambda path: flip(path, 130), r"has changed since it was written \(checksum [0-9a-f]{8}, expected .*\)"),
        (lambda path: flip(path, 299), r"has changed since it was written \(checksum [0-9a-f]{8}, expected .*\)"),
    ],
)
def test_a_damaged_block_is_named(finished: ScoreStore, damage: Callable[[Path], object], message: str) -> None:
    damage(finished.block_path(1))
    assert finished.read_block(0)["nll"].tolist() == NLL[:3]
    with pytest.raises(CorruptArtifactError, match=f"^{finished.block_path(1)} {message}: {REMEDY}$"):
        finished.read_all()


def test_every_byte_of_a_block_counts(finished: ScoreStore) -> None:
    for position in range(finished.plan.block_bytes(1)):
        flip(finished.block_path(1), position)
        assert list(finished.verify()) == [1], position
        flip(finished.block_path(1), position)
    assert finished.verify() == {}


def test_block_bytes_are_those_of_the_format_page(tmp_path: Path) -> None:
    """A block of two sequences, as docs/formats.md shows it."""
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    digits = re.search(r"A block of two sequences.*?```\n(.*?)```", page, re.DOTALL)
    assert digits is not None
    shown = bytes.fromhex(re.sub("#.*", "", digits[1]))
    identity = {
        "model": {},
        "corpus": [{"name": "corpus", "fingerprint": "0" * 32, "num_sequences": 2}],
        "settings": {"block_sequences": 2},
    }
    store = ScoreStore.create_or_resume(tmp_path, identity)
    store.write_block(0, np.array([3.5, 0.0]), np.array([3, NOT_SCORED]))
    assert store.block_path(0).read_bytes() == shown
    with open(store.block_path(0), "rb") as stream:
        assert np.load(stream).tolist() == [(3.5, 3), (0.0, -1)]
        signed_bytes = stream.tell()
        seal = np.load(stream)
        assert seal[:4].tobytes().hex() == digest_values("score identity", identity)
        assert seal[4:].tolist() == [zlib.crc32(shown[:signed_bytes])]
        assert stream.read() == b""


def test_short_reads_are_continued(finished: ScoreStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems give less than they are asked for."""
    readv = os.readv
    monkeypatch.setattr(os, "readv", lambda descriptor, buffers: readv(descriptor, [memoryview(buffers[0])[:7]]))
    assert finished.read_all()["nll"].tolist() == NLL


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, 7), st.integers(0, 7)).map(sorted))
def test_any_run_of_sequences_can_be_read(finished: ScoreStore, bounds: list[int]) -> None:
    start, stop = bounds
    assert finished.read(range(start, stop)).tolist() == finished.read_all().tolist()[start:stop]


def test_a_partial_read_checks_the_whole_block(finished: ScoreStore) -> None:
    flip(finished.block_path(1), 128)  # sequence 3
    with pytest.raises(CorruptArtifactError, match="has changed"):
        finished.read(range(5, 7))
    assert finished.read(range(0, 3))["nll"].tolist() == NLL[:3]


def test_verify_names_all_that_is_damaged_and_counts_bytes(finished: ScoreStore) -> None:
    advanced: list[int] = []
    assert finished.verify(advanced.append) == {}
    sizes = [path.stat().st_size for path in finished.block_path(0).parent.iterdir()]
    assert sum(advanced) == finished.num_bytes == sum(sizes)
    flip(finished.block_path(0), 130)
    truncate(finished.block_path(2))
    faults = finished.verify()
    assert list(faults) == [0, 2]
    assert all(fault.startswith(f"{finished.block_path(block)} has ") for block, fault in faults.items())


def test_a_block_of_another_store_is_found(finished: ScoreStore, corpus: IndexedCorpus, tmp_path: Path) -> None:
    other = write_scores(tmp_path / "elsewhere" / "teacher", [corpus], [*NLL[:-1], 0.875])
    finished.block_path(2).write_bytes(other.block_path(2).read_bytes())
    message = r"00000002.npy is whole, but not the block that the store was finished with \(.*, checksums.npy says"
    assert re.search(message, finished.verify()[2])
    finished.require_complete()  # sizes only, but from now on reads compare
    with pytest.raises(CorruptArtifactError, match=message):
        finished.read_all()
    finished.finish(inputs_of(corpus), VERSIONS)  # what the same scoring command does
    assert finished.verify() == {}
    assert finished.require_complete().fingerprint == other.require_complete().fingerprint


@pytest.fixture
def other_identity(corpus: IndexedCorpus) -> dict[str, Any]:
    return identity_of([corpus], model="another teacher")


OF_ANOTHER = r"00000000.npy was scored with another model, corpus or settings than this directory is for \(identity"


def test_a_job_that_works_while_another_starts_the_directory_anew(
    store: ScoreStore, other_identity: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second job has seen no block and no living process; the first publishes before the second goes on."""

    def look(directory: Path) -> list[Holder]:
        found = in_flight(directory)
        assert store.write_block(0, np.ones(3), np.ones(3))
        return found

    monkeypatch.setattr(scores, "in_flight", look)
    second = ScoreStore.create_or_resume(store.directory, other_identity)
    assert second.missing_blocks() == [1, 2]
    for block, count in ((1, 3), (2, 1)):
        second.write_block(block, np.zeros(count), np.ones(count))
        with pytest.raises(FingerprintMismatchError, match="holds scores of another model"):
            store.write_block(block, np.ones(count), np.ones(count))
    with pytest.raises(CorruptArtifactError, match=OF_ANOTHER):
        second.finish((), VERSIONS)
    assert not second.has_manifest
    assert list(second.verify()) == [0]
    assert any(re.search(OF_ANOTHER, fault) for fault in find_faults(second.directory))
    second.block_path(0).unlink()  # as the message says
    second.write_block(0, np.zeros(3), np.ones(3))
    second.finish((), VERSIONS)
    assert second.read_all()["nll"].tolist() == [0.0] * 7


def test_a_job_that_wakes_after_another_has_started_the_directory_anew(
    store: ScoreStore, other_identity: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has compared the identity, sleeps until its lease has expired, and publishes."""
    others: list[ScoreStore] = []

    def sleep_then_write(path: Path, data: bytes) -> bool:
        monkeypatch.undo()
        others.append(ScoreStore.create_or_resume(store.directory, other_identity))
        return write_once(path, data)

    monkeypatch.setattr(scores, "write_once", sleep_then_write)
    assert store.write_block(0, np.ones(3), np.ones(3))
    with pytest.raises(CorruptArtifactError, match=OF_ANOTHER):
        others[0].read(range(7))


def test_a_store_that_was_started_anew_is_not_finished_for_another(
    finished: ScoreStore, other_identity: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_all_blocks = ScoreStore._read_into

    def then_start_anew(self: ScoreStore, *arguments: Any) -> int:
        (self.directory / "identity.json").write_bytes(identity_bytes(other_identity))
        return read_all_blocks(self, *arguments)

    (finished.directory / "manifest.json").unlink()
    monkeypatch.setattr(ScoreStore, "_read_into", then_start_anew)
    with pytest.raises(FingerprintMismatchError, match="holds scores of another model"):
        finished.finish((), VERSIONS)
    assert not finished.has_manifest


def as_format_2(store: ScoreStore) -> ScoreStore:
    """The same store as the release before wrote it."""
    path = store.directory / "identity.json"
    path.write_text(path.read_text().replace('"format_version": 3', '"format_version": 2'))
    old = ScoreStore.open(store.directory)
    for block in store.published_blocks():
        scores_N = store.read_block(block)
        with open(store.block_path(block), "wb") as stream:
            np.save(stream, scores_N)
            signed = stream.tell()
        with open(store.block_path(block), "r+b") as stream:
            checksum = zlib.crc32(stream.read(signed))
            np.save(stream, np.array([checksum], "<u4"))
    return old


def test_a_finished_store_of_format_2_is_read(finished: ScoreStore, corpus: IndexedCorpus) -> None:
    old = as_format_2(finished)
    assert old.format_version == 2
    old.finish(inputs_of(corpus), VERSIONS)
    assert old.require_complete().counts["num_tokens"] == sum(NUM_TOKENS)
    assert old.read_all()["nll"].tolist() == NLL
    assert old.verify() == {}
    assert find_faults(old.directory) == []
    assert ScoreStore.create_or_resume(old.directory, old.identity).missing_blocks() == []


def test_an_unfinished_store_of_format_2_is_not_continued(store: ScoreStore, identity: dict[str, Any]) -> None:
    store.write_block(1, np.ones(3), np.ones(3))
    old = as_format_2(store)
    assert old.read_block(1)["nll"].tolist() == [1.0] * 3
    with pytest.raises(CorruptArtifactError, match=r"unfinished store in format 2.*finish it with the release that"):
        ScoreStore.create_or_resume(store.directory, identity)


def test_a_store_of_format_2_without_a_block_is_started_anew(store: ScoreStore, identity: dict[str, Any]) -> None:
    as_format_2(store)
    assert ScoreStore.create_or_resume(store.directory, identity).format_version == 3


def test_more_blocks_than_can_be_listed_are_refused(tmp_path: Path, identity: dict[str, Any]) -> None:
    identity["corpus"][0]["num_sequences"] = 1 << 40
    with pytest.raises(InputError, match=r"expected at most 4194304.*: give another --miniplm-block-sequences"):
        ScoreStore.create_or_resume(tmp_path / "scores", identity)


def test_a_damaged_block_is_not_finished(finished: ScoreStore) -> None:
    (finished.directory / "manifest.json").unlink()
    truncate(finished.block_path(2))
    with pytest.raises(CorruptArtifactError, match=r"00000002.npy has 281 bytes, expected 284"):
        finished.finish((), VERSIONS)
    assert not (finished.directory / "manifest.json").exists()


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


def test_inspection_of_an_intact_store(finished: ScoreStore) -> None:
    assert find_faults(finished.directory) == []
    finished.block_path(1).unlink()
    assert find_faults(finished.directory) == [
        f"{finished.directory}: 1 of 3 blocks are missing (first: 1): run the same scoring command again"
    ]


def test_the_first_publication_stays(store: ScoreStore) -> None:
    assert store.write_block(1, np.ones(3), np.ones(3))
    before = directory_bytes(store.directory)
    assert not store.write_block(1, np.zeros(3), np.ones(3))
    assert directory_bytes(store.directory) == before
    assert store.has_block(1)
    assert not store.has_block(0)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP])
def test_the_first_publication_stays_without_hard_links(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    test_the_first_publication_stays(store)


def test_one_of_many_publishes(store: ScoreStore) -> None:
    start, published = threading.Barrier(8), []

    def work(number: int) -> None:
        start.wait()
        published.append((store.write_block(0, np.full(3, number), np.ones(3)), number))

    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (number for won, number in published if won)
    assert store.read_block(0)["nll"].tolist() == [winner] * 3
    assert [path.name for path in store.block_path(0).parent.iterdir()] == ["00000000.npy"]


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_full_disk_is_one_line_and_leaves_nothing(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(InputError) as raised:
        store.write_block(1, np.ones(3), np.ones(3))
    assert str(raised.value) == f"{store.block_path(1)} cannot be used: No space left on device"
    assert directory_bytes(store.directory).keys() == {"identity.json"}


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path, identity: dict[str, Any]) -> None:
    (tmp_path / "scores").write_text("a file")
    with pytest.raises(InputError, match=r"^.*/scores cannot be used: File exists$"):
        ScoreStore.create_or_resume(tmp_path / "scores", identity)


def test_a_run_without_blocks_is_started_anew(store: ScoreStore, identity: dict[str, Any]) -> None:
    stranger = copy.deepcopy(identity)
    stranger["settings"]["context_tokens"] = 32
    assert ScoreStore.create_or_resume(store.directory, stranger).identity == stranger
    with pytest.raises(FingerprintMismatchError, match="--seq-length: 32 there, 64 here"):
        store.write_block(0, np.ones(3), np.ones(3))
    assert not store.has_block(0)


def test_a_run_that_works_on_its_first_block_is_not_started_anew(store: ScoreStore, identity: dict[str, Any]) -> None:
    stranger = copy.deepcopy(identity)
    stranger["settings"]["context_tokens"] = 32
    with Leases(store.directory) as leases:
        assert leases.claim(0)
        with pytest.raises(FingerprintMismatchError, match="--seq-length: 64 there, 32 here"):
            ScoreStore.create_or_resume(store.directory, stranger)


def test_scores_that_were_left_out_are_counted_apart(store: ScoreStore) -> None:
    for block in range(3):
        num_sequences = len(store.plan.sequences(block))
        nll_N, num_tokens_N = np.ones(num_sequences), np.full(num_sequences, 4)
        nll_N[0], num_tokens_N[0] = 0, NOT_SCORED
        store.write_block(block, nll_N, num_tokens_N)
    counts = store.finish((), VERSIONS).counts
    assert counts == {"num_sequences": 7, "num_scored_sequences": 4, "num_tokens": 16}


def test_foreign_names_are_no_blocks(store: ScoreStore) -> None:
    store.write_block(1, np.ones(3), np.ones(3))
    for name in ("0.npy", "000000002.npy", "00000009.npy", "00000002.npz", ".00000002.npy.0123456789abcdef.tmp"):
        (store.directory / "blocks" / name).touch()
    assert store.missing_blocks() == [0, 2]
    assert store.published_blocks() == [1]


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
    assert manifest.counts == {"num_sequences": 7, "num_scored_sequences": 7, "num_tokens": sum(NUM_TOKENS)}
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
