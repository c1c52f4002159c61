"""A directory to work in, and small corpora."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def corpora(tmp_path: Path) -> list:
    """Prefixes of two, no and three sequences."""
    parts = {"web": [[1, 2, 3, 4], []], "none": [], "code": [[5, 6], [7, 8, 9], [7, 8]]}
    return [write_corpus(tmp_path / name, sequences) for name, sequences in parts.items()]
