"""Texts of sequences, whatever they were read from, in the other tokenizer."""

from pathlib import Path

import numpy as np
import pytest
from retokenized import build, convert, expected_sequences, ids_of, sequences_of

from megatron_miniplm.corpus.retokenization.convert import ConversionSettings
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.indexed import IndexedCorpus, write_view


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("chunk_length", [None, 32])
def test_a_view_becomes_its_text_in_the_other_tokenizer(
    tmp_path: Path,
    texts: list[str],
    bpe_settings: TokenizerSettings,
    sp_settings: TokenizerSettings,
    sp: TextEncoder,
    kind: str,
    chunk_length: int | None,
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, kind=kind, chunk_length=chunk_length)
    corpus = IndexedCorpus.open(prefix)
    expected = expected_sequences(prefix, texts, sp)
    if chunk_length is None:
        assert expected == [[*ids_of(sp, text), sp.eod_id] for text in texts if text]
    settings = ConversionSettings(tokenizer=sp_settings)
    rng = np.random.default_rng(1)
    for name, chosen in (
        ("ascending", np.flatnonzero(rng.random(len(corpus)) < 0.3)),
        ("one", np.array([len(corpus) - 1])),
        ("none", np.zeros(0, np.int64)),
        ("unordered", rng.integers(0, len(corpus), 2 * len(corpus))),
    ):
        view = write_view(corpus, chosen, tmp_path / "views" / name, label="refined", settings={})
        output = convert(view, tmp_path / "student" / name, settings)
        assert sequences_of(output) == [expected[index] for index in chosen]
        assert [path for path in output.parent.iterdir() if path.name.startswith(".")] == []
    assert sequences_of(convert(prefix, tmp_path / "student" / "all", settings)) == expected
