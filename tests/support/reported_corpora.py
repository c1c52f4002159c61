"""A scored corpus and what a brute-force computation needs of it, and the attacks of a hostile crawl."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.sampling import difference_sample
from megatron_miniplm.selection.scored_corpus import REFERENCE, TEACHER

#: Each of these would do something in a page that does not escape it.
ATTACKS = (
    "<script>document.title = 'owned'; window.owned = 1</script>",
    "</style></pre></script><script>window.owned = 2</script>",
    '"><img src=x onerror="window.owned = 3"> & &amp; \' " onmouseover=\'window.owned = 4\'',
    "javascript:window.owned=5 <!-- ]]> {{7*7}} ${window.owned=6}",
    "<svg onload=window.owned=7><base href='https://example.invalid/'><meta http-equiv=refresh content=0>",
)
#: A file name cannot hold a slash.
HOSTILE_SOURCE = "a\"><img src=x onerror='window.owned=8'>&lt;.jsonl"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A scored corpus, and all that a brute-force computation needs of it; arrays by global id."""

    directory: Path
    corpora: list[IndexedCorpus]
    teacher_N: np.ndarray
    reference_N: np.ndarray
    length_N: np.ndarray

    @property
    def scores(self) -> dict[str, Path]:
        return {TEACHER: self.directory / "teacher", REFERENCE: self.directory / "reference"}

    @property
    def num_scored_N(self) -> np.ndarray:
        return np.maximum(self.length_N - 1, 0)

    @property
    def prefix_N(self) -> np.ndarray:
        return np.repeat(np.arange(len(self.corpora)), [len(corpus) for corpus in self.corpora])

    @property
    def difference_N(self) -> np.ndarray:
        """A token's; -inf where nothing is scored."""
        difference_N = self.reference_N.astype(np.float32).astype(np.float64) - self.teacher_N.astype(np.float32)
        known_N = self.num_scored_N > 0
        return np.where(known_N, difference_N / np.maximum(self.num_scored_N, 1), -np.inf)

    def select(self, name: str = "selection", scores: dict[str, Path] | None = None, **settings: Any) -> Path:
        difference_sample(scores or self.scores, self.directory / name, Rule(**settings), index_only=True)
        return self.directory / name

    def kept(self, selection: Path) -> np.ndarray:
        """Whether each sequence is kept, read without the code under test."""
        kept_N = np.zeros(len(self.length_N), bool)
        start = 0
        for position, corpus in enumerate(self.corpora):
            kept_N[start + np.load(selection / f"{position:04d}_{corpus.prefix.name}.indices.npy")] = True
            start += len(corpus)
        return kept_N


def made_scores(length_N: np.ndarray, seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Sums of teacher and reference, nothing where nothing is scored."""
    rng = np.random.default_rng(seed)
    num_scored_N = np.maximum(length_N - 1, 0)
    teacher_N = rng.normal(2.7, 0.5, len(length_N)).clip(0.1)
    return teacher_N * num_scored_N, (teacher_N + rng.gamma(4, 0.12, len(length_N)) - 0.2) * num_scored_N
