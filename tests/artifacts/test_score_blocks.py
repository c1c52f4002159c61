"""Blocks of scores: which sequences they hold, their bytes, and what is refused."""

import os
import re
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from damage import flip, truncate
from hypothesis import given
from hypothesis import strategies as st
from score_stores import SMALL_NLL, SMALL_NUM_TOKENS

from megatron_miniplm.artifacts import digest_values
from megatron_miniplm.artifacts.score_blocks import default_block_sequences, runs_of
from megatron_miniplm.artifacts.scores import NOT_SCORED, SCORE_DTYPE, BlockPlan, ScoreStore
from megatron_miniplm.errors import CorruptArtifactError


@given(blocks=st.sets(st.integers(0, 40)).map(sorted))
def test_runs_are_the_blocks_without_gaps(blocks: list[int]) -> None:
    runs = runs_of(blocks)
    assert [block for first, last in runs for block in range(first, last + 1)] == blocks
    assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))


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


def test_a_block_is_a_plain_npy_of_8_bytes_a_sequence(finished: ScoreStore) -> None:
    block = np.load(finished.block_path(1), allow_pickle=False)
    assert block.tolist() == list(zip(SMALL_NLL[3:6], SMALL_NUM_TOKENS[3:6], strict=True))
    assert block.dtype.itemsize == 8


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
    assert finished.read_block(0)["nll"].tolist() == SMALL_NLL[:3]
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
    assert finished.read_all()["nll"].tolist() == SMALL_NLL
