import copy
import errno
import os
import re
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage import flip, truncate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron_runs import directory_bytes
from score_stores import SMALL_NLL, SMALL_NUM_TOKENS, VERSIONS, identity_of, write_scores

from megatron_miniplm.artifacts import scores
from megatron_miniplm.artifacts.atomic import write_once
from megatron_miniplm.artifacts.leases import Holder, Leases, in_flight
from megatron_miniplm.artifacts.manifest import ArtifactInput
from megatron_miniplm.artifacts.score_records import identity_bytes
from megatron_miniplm.artifacts.scores import NOT_SCORED, SCORE_DTYPE, ScoreStore
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError, NonFiniteScoreError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.reports.inspection import find_faults


def inputs_of(corpus: IndexedCorpus) -> tuple[ArtifactInput, ...]:
    return (ArtifactInput(role="corpus", path="../corpus", fingerprint=corpus.fingerprint()),)


def test_round_trip(finished: ScoreStore) -> None:
    scores = ScoreStore.open(finished.directory).read_all()
    assert scores.dtype == SCORE_DTYPE
    assert scores["nll"].tolist() == SMALL_NLL
    assert scores["num_tokens"].tolist() == SMALL_NUM_TOKENS


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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])  # the last is infinite in float32
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_a_score_that_is_not_finite_is_refused(store: ScoreStore, value: float) -> None:
    with pytest.raises(NonFiniteScoreError) as raised:
        store.write_block(1, np.array([1.0, value, 1.0]), np.ones(3))
    assert str(raised.value) == (
        f"sequence 4 has an NLL of {value}: the model or its precision is broken; nothing of its block was written"
    )
    assert directory_bytes(store.directory).keys() == {"identity.json"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(bounds=st.tuples(st.integers(0, 7), st.integers(0, 7)).map(sorted))
def test_any_run_of_sequences_can_be_read(finished: ScoreStore, bounds: list[int]) -> None:
    start, stop = bounds
    assert finished.read(range(start, stop)).tolist() == finished.read_all().tolist()[start:stop]


def test_a_partial_read_checks_the_whole_block(finished: ScoreStore) -> None:
    flip(finished.block_path(1), 128)  # sequence 3
    with pytest.raises(CorruptArtifactError, match="has changed"):
        finished.read(range(5, 7))
    assert finished.read(range(0, 3))["nll"].tolist() == SMALL_NLL[:3]


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
    other = write_scores(tmp_path / "elsewhere" / "teacher", [corpus], [*SMALL_NLL[:-1], 0.875])
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
    assert old.require_complete().counts["num_tokens"] == sum(SMALL_NUM_TOKENS)
    assert old.read_all()["nll"].tolist() == SMALL_NLL
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
    with pytest.raises(InputError, match=r"expected at most 4194304.*: give another --block-sequences"):
        ScoreStore.create_or_resume(tmp_path / "scores", identity)


def test_a_damaged_block_is_not_finished(finished: ScoreStore) -> None:
    (finished.directory / "manifest.json").unlink()
    truncate(finished.block_path(2))
    with pytest.raises(CorruptArtifactError, match=r"00000002.npy has 281 bytes, expected 284"):
        finished.finish((), VERSIONS)
    assert not (finished.directory / "manifest.json").exists()


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


def test_equal_scores_give_equal_bytes_in_any_order_of_blocks(
    store: ScoreStore, identity: dict[str, Any], tmp_path: Path
) -> None:
    other = ScoreStore.create_or_resume(tmp_path / "other", identity)
    for target, order in ((store, (0, 1, 2)), (other, (2, 0, 1))):
        for block in order:
            ids = list(target.plan.sequences(block))
            target.write_block(block, np.array(SMALL_NLL)[ids], np.array(SMALL_NUM_TOKENS)[ids])
        target.finish((), VERSIONS)
    assert directory_bytes(store.directory) == directory_bytes(other.directory)
