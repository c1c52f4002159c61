"""Lengths, domains, copies and n-grams, against counts by hand and by plain Python."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import random_sequences, write_corpus

from megatron_miniplm.cli import run_tool
from megatron_miniplm.evaluation.analysis import exact
from megatron_miniplm.evaluation.analysis.data import Dataset
from megatron_miniplm.evaluation.analysis.exact import (
    PERCENTILES,
    different_ngrams,
    measure_lengths,
    measure_origin,
    ngram_hashes,
    scan,
    tally,
)
from megatron_miniplm.indexed import IndexedCorpus, write_view

TEXTS = ["12 7 12 99", "5", "7 8 9 10 11", "3 3 3", "1 2"]
DOMAINS = ["code", "prose", "", "code", "prose"]


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    """Five sequences of 4, 1, 5, 3 and 2 tokens."""
    lines = [json.dumps({"text": text, "of": domain}) for text, domain in zip(TEXTS, DOMAINS, strict=True)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100"]
    paths = ["--input", str(tmp_path / "text.jsonl"), "--output-prefix", str(tmp_path / "it")]
    assert run_tool("preprocess-data", [*paths, *tokenizer, "--domain-key", "of"]) == 0
    return IndexedCorpus.open(tmp_path / "it_text_document")


@given(st.lists(st.lists(st.integers(0, 300), min_size=1), min_size=1))
def test_lengths_are_those_of_a_plain_sort(chunks: list[list[int]]) -> None:
    found = measure_lengths(np.array(chunk, np.int32) for chunk in chunks)
    values = np.array([value for chunk in chunks for value in chunk])
    assert (found.num_sequences, found.num_tokens) == (len(values), values.sum())
    assert (found.shortest, found.longest, found.mean) == (values.min(), values.max(), pytest.approx(values.mean()))
    expected = np.quantile(values, [percent / 100 for percent in PERCENTILES], method="inverted_cdf")
    assert found.percentiles == tuple(expected)
    assert sum(found.histogram.values()) == len(values)
    for edge, count in found.histogram.items():
        assert count == ((values < edge) & (values >= edge // 2)).sum()


def test_a_tally_over_chunks_is_that_of_all() -> None:
    values, counts = tally([np.array([5, 1, 5]), np.zeros(0, np.int64), np.array([1, 9])])
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == Counter([5, 1, 5, 1, 9])


def test_domains_and_bytes_by_hand(corpus: IndexedCorpus, tmp_path: Path) -> None:
    whole = measure_origin(Dataset.open("whole", [corpus.prefix]))
    assert whole.sequences == {"": 1, "code": 2, "prose": 2}
    assert whole.tokens == {"": 5, "code": 7, "prose": 3}
    assert whole.text_bytes == sum(map(len, TEXTS))
    view = write_view(corpus, np.array([0, 4, 4]), tmp_path / "views", label="it", settings={})
    part = measure_origin(Dataset.open("part", [view]))
    assert part.sequences == {"code": 1, "prose": 2}
    assert part.tokens == {"code": 4, "prose": 4}
    assert part.text_bytes == len(TEXTS[0]) + 2 * len(TEXTS[4])


def test_without_a_sidecar_nothing_is_known(corpus: IndexedCorpus, tmp_path: Path) -> None:
    bare = write_corpus(tmp_path / "bare", [[1, 2], [3]])
    found = measure_origin(Dataset.open("bare", [bare.prefix]))
    assert (found.sequences, found.tokens, found.text_bytes) == ({}, {}, None)
    both = measure_origin(Dataset.open("both", [bare.prefix, corpus.prefix]))
    assert both.tokens == {"": 5 + 3, "code": 7, "prose": 3}
    assert both.text_bytes is None


def test_planted_copies_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sequence stands three times, one twice, across prefixes; beginnings and empty ones are no copies."""
    monkeypatch.setattr(exact, "_BATCH_TOKENS", 5)  # copies lie in different batches
    first = write_corpus(tmp_path / "first", [[1, 2, 3], [4, 5], [], [1, 2], [1, 2, 3]])
    second = write_corpus(tmp_path / "second", [[], [4, 5], [1, 2, 3], [2, 1]])
    read: list[int] = []
    found = scan(Dataset.open("it", [first.prefix, second.prefix]), {}, read.append)
    assert (found.num_sequences, found.num_tokens) == (7, 17)
    assert (found.copies, found.copied_tokens) == (3, 3 + 3 + 2)
    assert sum(read) == 17


def test_held_out_ngrams_are_those_of_plain_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_BATCH_TOKENS", 50)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, 5, rng.integers(0, 40)) for _ in range(40)]
    held = [rng.integers(0, 5, 20) for _ in range(3)] + [texts[3], texts[7][2:30]]
    data, held_out = write_corpus(tmp_path / "data", texts), write_corpus(tmp_path / "held", held)

    def ngrams(sequences: list[np.ndarray]) -> set[tuple[int, ...]]:
        return {tuple(one[start : start + 13].tolist()) for one in sequences for start in range(len(one) - 12)}

    hashes = different_ngrams(Dataset.open("held", [held_out.prefix]))
    assert len(hashes) == len(ngrams(held))
    found = scan(Dataset.open("data", [data.prefix]), {"held": hashes}).held_out["held"]
    assert found == (len(ngrams(held) & ngrams(texts)), len(ngrams(held)))
    assert 0 < found[0] < found[1]


def test_ngrams_lie_within_sequences() -> None:
    assert len(ngram_hashes([np.arange(13), np.arange(12), np.arange(15)])) == 1 + 0 + 3
    assert len(ngram_hashes([np.arange(12)])) == len(ngram_hashes([])) == 0
    one, two = ngram_hashes([np.arange(14)])
    assert one != two
    assert ngram_hashes([np.arange(1, 14)])[0] == two


def test_a_held_out_corpus_without_ngrams_is_no_error(tmp_path: Path) -> None:
    short, data = write_corpus(tmp_path / "short", [[1, 2]]), write_corpus(tmp_path / "data", random_sequences([40], 0))
    hashes = different_ngrams(Dataset.open("short", [short.prefix]))
    assert scan(Dataset.open("data", [data.prefix]), {"short": hashes}).held_out == {"short": (0, 0)}
