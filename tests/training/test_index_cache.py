"""Megatron's caches with our care: stale, missing, half-written, and built by several at once."""

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron_runs import dataset_config, write_corpus
from refined_runs import ScoredCorpora
from selections import seal

from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus, layout, write_view
from megatron_miniplm.training.index_cache import IndexCache, check_prefix_of, verify_view

Build = Callable[..., Any]
NAMES = ("first", "second")


def cache_in(directory: Path) -> IndexCache:
    return IndexCache(directory=directory, stem="0a1b-Some-train", description="{}", names=NAMES)


def arrays(size: int = 1000) -> dict[str, np.ndarray]:
    return {name: np.arange(size, dtype=np.int32) for name in NAMES}


def test_published_once(tmp_path: Path) -> None:
    cache, calls = cache_in(tmp_path / "new" / "cache"), []

    def build() -> dict[str, np.ndarray]:
        calls.append(1)
        return arrays()

    assert not cache.is_complete()
    for _ in range(3):
        cache.ensure(build)
    assert cache.is_complete()
    assert len(calls) == 1
    np.testing.assert_array_equal(np.load(cache.directory / "0a1b-Some-train-second.npy"), np.arange(1000))


@pytest.mark.parametrize("name", ["description.txt", "first.npy", "second.npy"])
def test_what_is_missing_or_cut_is_no_hit(tmp_path: Path, name: str) -> None:
    cache = cache_in(tmp_path)
    for damage in (Path.unlink, lambda path: os.truncate(path, path.stat().st_size // 2)):
        cache.ensure(arrays)
        damage(tmp_path / f"0a1b-Some-train-{name}")
        assert not cache.is_complete()
        cache.ensure(arrays)
        assert cache.is_complete()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    with pytest.raises(ZeroDivisionError):
        cache.ensure(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert not [path for path in tmp_path.iterdir() if path.suffix != "" and path.name != "0a1b-Some-train-lock"]
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match=r"file/cache: the index cache .* \(Not a directory\): give --data-cache-path"):
        cache_in(blocked / "cache").ensure(arrays)


def _build_slowly(directory: Path, log: Path, seconds: float) -> None:
    def build() -> dict[str, np.ndarray]:
        with open(log, "a") as stream:
            stream.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return arrays()

    cache_in(directory).ensure(build)


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", tmp_path / "log", 0.5)
    processes = [context.Process(target=_build_slowly, args=arguments) for _ in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 6
    assert len((tmp_path / "log").read_text().split()) == 1


def test_a_killed_builder_is_no_hit_and_blocks_nobody(tmp_path: Path) -> None:
    """Killed while it builds, and again while it writes."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_build_slowly, args=(tmp_path / "cache", tmp_path / "log", 60.0))
    process.start()
    while not (tmp_path / "log").exists():
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    cache = cache_in(tmp_path / "cache")
    assert not cache.is_complete()
    leftover = cache.directory / ".0a1b-Some-train-first.npy.0123456789abcdef.tmp"
    leftover.write_bytes(b"half")
    cache.ensure(arrays)
    assert cache.is_complete()
    assert not leftover.exists()


def test_every_moment_of_publishing_is_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped at each system call that makes something visible; what is there is no hit, and the next run mends it."""
    moments = 0
    while True:
        directory, renames = tmp_path / str(moments), 0

        def interrupted(source: Path, target: Path, stop_at: int = moments) -> None:
            nonlocal renames
            if renames == stop_at:
                raise KeyboardInterrupt
            renames += 1
            source.rename(target)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", interrupted)
            try:
                cache_in(directory).ensure(arrays)
                break
            except KeyboardInterrupt:
                pass
        assert not cache_in(directory).is_complete()
        cache_in(directory).ensure(arrays)
        assert cache_in(directory).is_complete()
        moments += 1
    assert moments == 3, "two arrays, then the description"


def test_another_selection_at_the_same_path_is_another_cache(
    build: Build, scored: ScoredCorpora, tmp_path: Path
) -> None:
    import shutil

    from megatron_miniplm.training import dataset as module

    place = tmp_path / "selection"
    drawn = []
    for ratio in (0.5, 0.4):
        made = scored.select(f"ratio_{ratio}", ratio=ratio)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(made, place)
        module._refinement.cache_clear()  # another process
        summary = json.loads((place / "selection.json").read_text())
        for entry in summary["prefixes"]:
            entry["path"] = str(scored.directory / entry["name"])
        (place / "selection.json").write_text(json.dumps(summary))
        seal(place)
        blend = build(selection=[place])
        drawn.append([set(dataset.document_index.tolist()) for dataset in blend.datasets])
    assert drawn[0] != drawn[1]
    expected = [set(prefix.indices().tolist()) for prefix in Selection.open(scored.select("ratio_0.4")).prefixes]
    assert drawn[1] == expected


def test_weights_and_schedules_are_part_of_the_key(build: Build, scored: ScoredCorpora) -> None:
    weighted = scored.select("weighted", ratio=0.9, weights="linear")
    names = {}
    for name, flags in {
        "none": {},
        "loss": {"weighting": "loss"},
        "resample": {"weighting": "resample"},
        "schedule": {"ratio_schedule": "0:0.9,60:0.4"},
        "later": {"ratio_schedule": "0:0.9,70:0.4"},
    }.items():
        names[name] = build(selection=[weighted], **flags).datasets[0].unique_description_hash
    assert names["none"] == names["loss"], "the order of samples is the same"
    assert len(set(names.values())) == 4


def test_two_jobs_at_once(build: Build, scored: ScoredCorpora) -> None:
    """Both build the datasets of one blend into one directory."""
    half = scored.select("half", ratio=0.5)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=build, kwargs={"selection": [half]}) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    blend = build(selection=[half])
    again = build(selection=[half], config={"path_to_cache": str(scored.directory / "another_cache")})
    for position in range(len(again)):
        assert torch.equal(blend[position]["tokens"], again[position]["tokens"])


@pytest.mark.parametrize("is_deferred", [False, True])
def test_fast_loading_needs_no_run_before_it(
    build: Build, scored: ScoredCorpora, tmp_path: Path, is_deferred: bool
) -> None:
    """Megatron's --dataloader-fast-cache-load reads what an earlier job must have built; here it is built."""
    half = scored.select("half", ratio=0.5)
    sequences = {str(corpus.prefix): [len(corpus), len(corpus) + 1] for corpus in scored.corpora}
    usual = build(selection=[half])
    fast = build(
        selection=[half],
        config={
            "blend": None,
            "blend_per_split": [([str(corpus.prefix) for corpus in scored.corpora], [0.6, 0.4]), None, None],
            "split": None,
            "path_to_cache": str(tmp_path / "node_local"),
            "fast_cache_load": True,
            "defer_npy_index_mmap": is_deferred,
            "sequences_per_dataset": sequences,
        },
    )
    assert [dataset.indices for dataset in fast.datasets] == [None, None]
    assert [len(dataset) for dataset in fast.datasets] == [len(dataset) for dataset in usual.datasets]
    assert len(fast) == len(usual)
    for position in range(len(usual)):
        assert torch.equal(fast[position]["tokens"], usual[position]["tokens"])


def test_without_a_cache_path_it_lies_beside_the_data(build: Build, scored: ScoredCorpora) -> None:
    blend = build(selection=[scored.select("half", ratio=0.5)], config={"path_to_cache": None})
    beside = scored.corpora[0].prefix / "cache" / "DifferenceSampledGPTDataset_indices"
    assert len(list(beside.glob("*-description.txt"))) == 1
    assert len(blend) > 0


def test_other_ranks_build_what_their_node_lacks(
    build: Build, scored: ScoredCorpora, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Rank 3 of a job whose rank 0 has written to the disk of another node."""
    half = scored.select("half", ratio=0.5)
    usual = build(selection=[half])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *group: 3)
    monkeypatch.setattr(torch.distributed, "barrier", lambda *group: None)
    other = build(selection=[half], config={"path_to_cache": str(tmp_path / "other_node")})
    for position in range(len(usual)):
        assert torch.equal(other[position]["tokens"], usual[position]["tokens"])


def test_threads_of_one_builder(scored: ScoredCorpora, tmp_path: Path) -> None:
    """Megatron builds the prefixes of a blend in threads; equal prefixes have one cache."""
    cache, errors = cache_in(tmp_path), []
    assert dataset_config(scored.corpora[0].prefix, tmp_path) is not None

    def ensure() -> None:
        try:
            cache.ensure(arrays)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ensure) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert not errors
    assert cache.is_complete()


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A view of sequences of one length: a pointer to another of them passes every other check."""
    corpus = write_corpus(tmp_path / "web", [[k, k] for k in range(40)])
    return write_view(corpus, np.arange(0, 40, 3), tmp_path / "views", label="some", settings={})


def test_a_plain_corpus_that_megatron_cannot_number(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`GPTDataset` itself would number its sequences modulo 2^32."""
    dataset = IndexedDataset(str(prefix.parent.parent / "web"))
    arguments = (dataset, str(prefix.parent.parent / "web"), np.arange(40), None, Split.train, None)
    check_prefix_of(GPTDataset, arguments)
    monkeypatch.setattr(layout, "MAX_SEQUENCES", 39)
    with pytest.raises(InputError, match="web: 40 sequences, Megatron numbers at most 39 per prefix"):
        check_prefix_of(GPTDataset, arguments)


def point_elsewhere(prefix: Path) -> None:
    path = prefix.with_suffix(".idx")
    data = bytearray(path.read_bytes())
    data[34 + 4 * len(IndexedCorpus.open(prefix))] ^= 4  # first pointer: the sequence after it
    path.unlink()
    path.write_bytes(data)


def test_a_flipped_pointer(prefix: Path, tmp_path: Path) -> None:
    verify_view(str(prefix), tmp_path / "cache")
    point_elsewhere(prefix)
    assert IndexedCorpus.open(prefix).sequence(0).tolist() == [1, 1], "read as if nothing were wrong"
    with pytest.raises(CorruptArtifactError, match="its files have changed since they were written"):
        verify_view(str(prefix), tmp_path / "cache")


def test_other_data_behind_a_view(prefix: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "web", [[k, 7] for k in range(40)])
    with pytest.raises(CorruptArtifactError, match="its files have changed"):
        verify_view(str(prefix), tmp_path / "cache")


def test_a_restart_does_not_read_it_again(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_view(str(prefix), tmp_path / "cache")
    opened: list[Path] = []
    monkeypatch.setattr(IndexedCorpus, "open", opened.append)
    verify_view(str(prefix), tmp_path / "cache")
    assert opened == []


def test_one_rank_reads_it(prefix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_elsewhere(prefix)
    monkeypatch.setenv("RANK", "1")
    verify_view(str(prefix), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("path", ["web", "nowhere", "s3://bucket/views/some"])
def test_what_is_no_view_is_left_alone(prefix: Path, tmp_path: Path, path: str) -> None:
    verify_view(path if "://" in path else str(tmp_path / path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
