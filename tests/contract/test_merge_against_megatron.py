"""Our merge against the one of the installed megatron-core, on which its tools/merge_datasets.py stands."""

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from megatron_miniplm.indexed.merge import merge_prefixes

#: Per prefix, the lengths of the sequences of each document.
PREFIXES = {
    "b": [[5], [0], [], [1, 300, 17]],
    "a": [],
    "empty_documents": [[], []],
    "c": [[4096], [2, 2]],
}


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_same_bytes_as_add_index(tmp_path, dtype):
    rng = np.random.default_rng(0)
    merged = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=dtype)
    for name, documents in PREFIXES.items():
        builder = IndexedDatasetBuilder(str(tmp_path / f"{name}.bin"), dtype=dtype)
        for lengths in documents:
            builder.add_document(rng.integers(0, 65499, sum(lengths)), lengths)
        builder.finalize(str(tmp_path / f"{name}.idx"))
        merged.add_index(str(tmp_path / name))
    merged.finalize(str(tmp_path / "theirs.idx"))
    merge_prefixes([tmp_path / name for name in PREFIXES], tmp_path / "ours")
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"ours.{suffix}").read_bytes() == (tmp_path / f"theirs.{suffix}").read_bytes()
