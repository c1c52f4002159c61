"""Tokens that are decoded and encoded again."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from retokenized import build, convert, expected_sequences, ids_of, sequences_of

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings
from megatron_miniplm.corpus.retokenization.from_tokens import INVALID_UTF8, split_at_eod
from megatron_miniplm.corpus.retokenization.prefixes import ROUND_TRIP_SUFFIX
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.indexed import IndexedWriter


def test_chunks_go_by_way_of_their_tokens(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, sp: TextEncoder
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, chunk_length=32)
    output = convert(prefix, tmp_path / "out", ConversionSettings(tokenizer=sp_settings, converted_from="tokens"))
    assert sequences_of(output) == expected_sequences(prefix, texts, sp)
    counts = load_manifest(output).counts
    assert counts["num_round_trip_failures"] == 0
    assert output.with_name(output.name + ROUND_TRIP_SUFFIX).read_bytes() == b""


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6))
def test_segments_end_with_documents_and_sequences(sequences: list[list[int]]) -> None:
    tokens = [token for sequence in sequences for token in sequence]
    stops_N = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    stops_S, has_eod_S = split_at_eod(np.array(tokens, np.uint16), stops_N, 0)
    expected = []
    position = 0
    for sequence in sequences:
        for index, token in enumerate(sequence):
            position += 1
            if token == 0 or index == len(sequence) - 1:
                expected.append((position, token == 0))
    assert list(zip(stops_S.tolist(), has_eod_S.tolist(), strict=True)) == expected


def test_what_does_not_come_back_is_listed(
    tmp_path: Path, bpe: TextEncoder, bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, sp: TextEncoder
) -> None:
    """A character that is cut in two, and words in other ids than the tokenizer gives them."""
    whole, other = ids_of(bpe, "the thing"), [token for letter in "the" for token in ids_of(bpe, letter)]
    cut = ids_of(bpe, "é")[:1]
    assert len(ids_of(bpe, "é")) > 1
    eod = [bpe.eod_id]
    sequences = [whole + eod, other, [], eod + eod + whole, cut + eod + whole + eod + cut, whole]
    with IndexedWriter(tmp_path / "foreign", np.dtype("<u2")) as writer:
        for sequence in sequences:
            writer.append(np.array(sequence, np.int64), np.array([len(sequence)]))
        writer.close()
    settings = ConversionSettings(
        tokenizer=sp_settings,
        converted_from="tokens",
        source_tokenizer_type=bpe_settings.tokenizer_type,
        source_tokenizer_model=bpe_settings.tokenizer_model,
    )
    output = convert(tmp_path / "foreign", tmp_path / "out", settings)
    the_thing, the, broken, end = ids_of(sp, "the thing"), ids_of(sp, "the"), ids_of(sp, "\ufffd"), [sp.eod_id]
    assert sequences_of(output) == [
        the_thing + end,
        the,
        end + end + the_thing,
        broken + end + the_thing + end + broken,
        the_thing,
    ]
    lines = output.with_name(output.name + ROUND_TRIP_SUFFIX).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"sequence": 4, "reason": INVALID_UTF8}]
    counts = load_manifest(output).counts
    assert counts["num_round_trip_failures"] == 1
    assert counts["num_texts_with_other_ids"] == 1
    assert counts["num_empty_sequences"] == 1
