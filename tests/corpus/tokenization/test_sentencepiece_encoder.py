import io
import logging
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.errors import InputError

SAMPLES = [
    "<s>",
    "</s>",
    "<unk>",
    "<0x0A>",
    "<0x",
    "▁",
    " ",
    "  ",
    "\n",
    "a",
    "1",
    "é",
    "👍🏽",
    "==",
    "\x00",
    "\u3000",
    "the ",
]
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(SAMPLES)).map("".join))
PLAIN = {"byte_fallback": True, "remove_extra_whitespaces": False, "normalization_rule_name": "identity"}


def train(path: Path, **options: Any) -> Path:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(topics.values()).splitlines()),
        model_writer=model,
        vocab_size=600,
        max_sentence_length=10_000,
        num_threads=1,
        minloglevel=2,
        **{"model_type": "bpe", **options},
    )
    path.write_bytes(model.getvalue())
    return path


def reference_ids(path: Path, texts: list[str]) -> list[list[int]]:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return [reference.encode_as_ids(text) for text in texts]


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(texts=TEXTS)
def test_ids_are_those_of_sentencepiece(
    encode_each: Callable, sp: TextEncoder, sentencepiece_path: Path, texts: list[str]
) -> None:
    assert "gigatoken" in sp.versions
    ids = encode_each(sp, texts)
    assert ids == reference_ids(sentencepiece_path, texts)
    plain = [text.replace("▁", " ") for text in texts]  # its own sign for a space
    assert [sp.decode(part) for part in ids] == plain
    assert sp.decode_batch(*sp.encode(texts)) == [text.encode() for text in plain]


def test_a_control_string_in_the_text_is_text(encode_each: Callable, sp: TextEncoder) -> None:
    texts = ["plain", "a</s>b", "plain", "<s>", "", "<0x41>"]
    ids = encode_each(sp, texts)
    assert not {0, 1, sp.eod_id} & set().union(*ids)
    assert [sp.decode(part) for part in ids] == texts


@pytest.mark.parametrize("special", ["<|x|>", "foo bar", "▁start", "▁▁", "\n"])
def test_user_defined_symbols_are_found_as_sentencepiece_finds_them(
    encode_each: Callable, tmp_path: Path, special: str
) -> None:
    path = train(tmp_path / "m.model", user_defined_symbols=[special], **PLAIN)
    encoder = load_encoder("SentencePieceTokenizer", path, 1)
    assert "gigatoken" in encoder.versions
    near = special.replace("▁", " ")
    texts = [
        f"{start}{text}{stop}"
        for text in (special, near, near.strip(" "), near * 2)
        for start in ("", "a", " ")
        for stop in ("", "b", " ")
    ]
    texts += ["foo▁bar", "foo  bar", "a  b", "start", "restart"]
    assert encode_each(encoder, texts) == reference_ids(path, texts)


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {"model_type": "unigram", **PLAIN},
        {"byte_fallback": True},
        {**PLAIN, "byte_fallback": False},
        {**PLAIN, "treat_whitespace_as_suffix": True},
        {**PLAIN, "normalization_rule_name": "nfkc"},
        {**PLAIN, "remove_extra_whitespaces": True},
    ],
)
def test_models_that_gigatoken_reads_otherwise_are_left_to_sentencepiece(
    encode_each: Callable, tmp_path: Path, options: dict, caplog: pytest.LogCaptureFixture
) -> None:
    path = train(tmp_path / "m.model", **options)
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("SentencePieceTokenizer", path, 1)
    assert encoder.versions.keys() == {"sentencepiece"}
    assert "encoding with the slower sentencepiece: " in caplog.text
    texts = ["The  quick ½ brown\u3000fox ", " x", "<s>", "", "\u85e4" * 3, *topics.values()]
    ids = encode_each(encoder, texts)
    assert ids == reference_ids(path, texts)
    assert encoder.decode_batch(*encoder.encode(texts)) == [encoder.decode(part).encode() for part in ids]
    for text, part in zip(texts, ids, strict=True):
        stops = encoder.token_stops(text)
        assert len(stops) == len(part)
        assert np.all(np.diff(stops) >= 0)
        if text and encoder.token_bytes is not None:
            assert b"".join(encoder.token_bytes[token] for token in part) == encoder.text_prefix + text.encode()
    is_lossless = options.get("byte_fallback") and options.get("normalization_rule_name") == "identity"
    is_plain = (
        is_lossless and not options.get("remove_extra_whitespaces") and "treat_whitespace_as_suffix" not in options
    )
    assert (encoder.token_bytes is not None) == bool(is_plain)


@pytest.mark.parametrize("add_dummy_prefix", [True, False])
def test_the_prefix_is_the_dummy_prefix(encode_each: Callable, tmp_path: Path, add_dummy_prefix: bool) -> None:
    path = train(tmp_path / "m.model", add_dummy_prefix=add_dummy_prefix, **PLAIN)
    encoder = load_encoder("SentencePieceTokenizer", path, 1)
    assert encoder.text_prefix == (b" " if add_dummy_prefix else b"")
    texts = ["word", " word", "  word", " ", "\nword", "é 👍🏽"]
    for text, ids in zip(texts, encode_each(encoder, texts), strict=True):
        assert encoder.token_bytes is not None
        assert b"".join(encoder.token_bytes[token] for token in ids) == encoder.text_prefix + text.encode()
    assert encoder.decode_batch(*encoder.encode(texts)) == [text.encode() for text in texts]


def test_the_bytes_of_special_pieces_are_those_they_decode_to(sp: TextEncoder) -> None:
    assert sp.token_bytes is not None
    assert sp.token_bytes[:4] == [" ⁇ ".encode(), b"", b"", b"\x00"]
    assert sp.token_bytes[3 + 0xE9] == b"\xe9"
    assert [sp.decode([token]).encode() for token in (0, 1, 2)] == sp.token_bytes[:3]


def test_megatrons_three_names_are_one_tokenizer(sp: TextEncoder, sentencepiece_path: Path) -> None:
    for tokenizer_type in ("GPTSentencePieceTokenizer", "Llama2Tokenizer"):
        assert load_encoder(tokenizer_type, sentencepiece_path, 1).fingerprint() == sp.fingerprint()


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path / "tokenizer.json", tmp_path):
        with pytest.raises(InputError, match=r"is not a SentencePiece model \(.*\): give a \.model file"):
            load_encoder("SentencePieceTokenizer", path, 1)
