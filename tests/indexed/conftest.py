from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter

#: Sequences of 3, 0, 1 and 2 tokens; small enough to follow by eye.
LITERAL_SEQUENCES = [[10, 11, 12], [], [20], [30, 31]]


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., IndexedCorpus]:
    """Writes `sequences` under `tmp_path / name` and opens them."""

    def write(
        sequences: Sequence[Sequence[int]] = LITERAL_SEQUENCES, name: str = "corpus", dtype: str = "<u2"
    ) -> IndexedCorpus:
        with IndexedWriter(tmp_path / name, np.dtype(dtype)) as writer:
            for sequence in sequences:
                writer.append(np.array(sequence, np.int64), np.array([len(sequence)]))
            writer.close()
        return IndexedCorpus.open(tmp_path / name)

    return write


@pytest.fixture
def literal_corpus(write_corpus: Callable[..., IndexedCorpus]) -> IndexedCorpus:
    return write_corpus()
