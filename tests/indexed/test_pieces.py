"""Checksums of the tokens of pieces."""

import zlib

import numpy as np

from megatron_miniplm.indexed.pieces import crc32_of_runs

LENGTHS_N = np.array([3, 5, 2, 7], np.int32)
TOKENS_T = np.arange(100, 117, dtype=np.uint16)


def test_checksums_are_those_of_zlib() -> None:
    expected = [zlib.crc32(run.tobytes()) for run in np.split(TOKENS_T, np.cumsum(LENGTHS_N)[:-1])]
    assert crc32_of_runs(TOKENS_T, LENGTHS_N).tolist() == expected
    assert crc32_of_runs(TOKENS_T[:0], LENGTHS_N[:0]).tolist() == []
