import logging
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rank_files import ranked_bytes, write_gpt2_files, write_ranks

from megatron_miniplm.corpus.tokenization import huggingface_encoder
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import TOKENIZER_TYPES, load_encoder, make_encoder
from megatron_miniplm.errors import InputError

KINDS = ("HuggingFace", "HuggingFace split", "GPT2", "SentencePiece", "tiktoken v1", "tiktoken v2")
SAMPLES = ["<s>", "</s>", "<|endoftext|>", "▁", " ", "  ", "\n", "\t", "a", "1", "é", "e\u0301", "👍🏽", "'s", "the"]
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.lists(st.sampled_from(SAMPLES)).map("".join)


@pytest.fixture(scope="module")
def encoders(bpe: TextEncoder, sp: TextEncoder, bpe_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An encoder of each kind that has bytes for its tokens."""
    directory = tmp_path_factory.mktemp("files")
    vocab_path, merges_path = write_gpt2_files(directory, bpe_dir / "tokenizer.json")
    assert bpe.token_bytes is not None
    tokens = ranked_bytes(bpe.token_bytes)
    ranks_path = write_ranks(directory / "ranks.json", tokens)
    made = [
        TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=bpe_dir, split_special_tokens=True),
        TokenizerSettings(tokenizer_type="GPT2BPETokenizer", vocab_file=vocab_path, merge_file=merges_path),
        *(
            TokenizerSettings(
                tokenizer_type="TikTokenizer",
                tokenizer_model=ranks_path,
                vocab_size=len(tokens) + 10,
                tiktoken_num_special_tokens=10,
                tiktoken_pattern=pattern,
            )
            for pattern in ("v1", "v2")
        ),
    ]
    split, gpt2, v1, v2 = (make_encoder(each, 1) for each in made)
    return dict(zip(KINDS, (bpe, split, gpt2, sp, v1, v2), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXT)
def test_bytes_and_stops_of_tokens_add_up_to_the_text(encoders: dict, kind: str, text: str) -> None:
    encoder: TextEncoder = encoders[kind]
    data = text.encode()
    tokens_T, _ = encoder.encode([text])
    table = encoder.token_bytes
    assert table is not None
    assert len(table) == encoder.vocab_size
    sizes_T = np.array([len(table[token]) for token in tokens_T], dtype=np.int64)
    stops_T = encoder.token_stops(text)
    assert stops_T.dtype == np.int64
    assert len(stops_T) == len(tokens_T)
    assert np.all(np.diff(stops_T, prepend=0) >= 0)
    if len(tokens_T):
        assert stops_T[-1] == len(data)
    if "▁" in text and kind == "SentencePiece":
        assert sizes_T.sum() < len(encoder.text_prefix + data)
    elif text:
        assert b"".join(table[token] for token in tokens_T) == encoder.text_prefix + data
        by_table_T = np.cumsum(sizes_T) - len(encoder.text_prefix)
        is_between_characters_T = np.array([stop == len(data) or data[stop] & 0xC0 != 0x80 for stop in by_table_T])
        assert np.array_equal(by_table_T[is_between_characters_T], stops_T[is_between_characters_T])


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_can_be_sent_to_another_process(encoders: dict, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder: TextEncoder = encoders[kind]
    if kind.startswith("HuggingFace"):  # the check of gigatoken and the loading are not repeated
        monkeypatch.setattr(huggingface_encoder, "exact_or_none", None)
        monkeypatch.setattr(huggingface_encoder, "load_directory", None)
    sent = pickle.loads(pickle.dumps(encoder))
    texts = [*SAMPLES, "the <|endoftext|> end <s> of it"]
    for ours, theirs in zip(sent.encode(texts), encoder.encode(texts), strict=True):
        assert np.array_equal(ours, theirs)
    assert (sent.eod_id, sent.vocab_size, sent.versions) == (encoder.eod_id, encoder.vocab_size, encoder.versions)
    assert (sent.fingerprint(), sent.token_bytes) == (encoder.fingerprint(), encoder.token_bytes)
    assert sent.token_stops(texts[-1]).tolist() == encoder.token_stops(texts[-1]).tolist()


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXT))
def test_decoding_gives_the_text_back(encoders: dict, kind: str, texts: list[str]) -> None:
    encoder: TextEncoder = encoders[kind]
    if kind == "SentencePiece":
        texts = [text.replace("▁", " ") for text in texts]
    found = encoder.decode_batch(*encoder.encode(texts))
    assert found == [text.encode() for text in texts]


def test_a_control_token_in_the_text_is_text_to_sentencepiece_and_a_token_to_bpe(
    encode_each: Callable, sp: TextEncoder, bpe: TextEncoder
) -> None:
    assert sp.eod_id not in encode_each(sp, ["a</s>b"])[0]
    assert bpe.eod_id in encode_each(bpe, ["a<|endoftext|>b"])[0]


def test_properties(bpe: TextEncoder, sp: TextEncoder) -> None:
    assert (bpe.vocab_size, bpe.eod_id, bpe.text_prefix) == (600, 0, b"")
    assert (sp.vocab_size, sp.eod_id, sp.text_prefix) == (600, 2, b" ")
    assert bpe.versions.keys() == {"tokenizers", "gigatoken"}
    assert sp.versions.keys() == {"sentencepiece", "gigatoken"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_texts_give_no_ids(encode_each: Callable, encoders: dict, kind: str) -> None:
    encoder = encoders[kind]
    assert encode_each(encoder, []) == []
    assert encode_each(encoder, [""]) == [[]]
    assert encoder.token_stops("").tolist() == []
    assert encoder.decode_batch(*encoder.encode([])) == []


def null(vocab_size: int = 100, eod_id: int | None = None) -> TextEncoder:
    settings = TokenizerSettings(tokenizer_type="NullTokenizer", vocab_size=vocab_size, null_tokenizer_eod_id=eod_id)
    return make_encoder(settings, 1)


def test_the_null_tokenizer_reads_ids(encode_each: Callable) -> None:
    encoder = null()
    assert (encoder.vocab_size, encoder.eod_id, encoder.token_bytes) == (100, 99, None)
    assert null(eod_id=7).eod_id == 7
    assert encode_each(encoder, ["1 23 99", "0"]) == [[1, 23, 99], [0]]
    assert encoder.token_stops("1 23 99").tolist() == [1, 4, 7]
    assert encoder.decode([1, 23]) == "1 23"
    assert encoder.decode_batch(*encoder.encode(["1 23 99", "0"])) == [b"1 23 99", b"0"]
    assert len({null().fingerprint(), null(eod_id=7).fingerprint(), null(vocab_size=101).fingerprint()}) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 two", r"cannot read the text '1 two' \(.*'two'\): give ids with single spaces between them"),
        ("1  2", "cannot read the text '1  2'"),
        ("", "cannot read the text ''"),
        ("5 100", "has 100 ids, and the text '5 100' has 100: give another --vocab-size"),
        ("-1", "the text '-1' has -1"),
    ],
)
def test_the_null_tokenizer_refuses_what_it_cannot_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        null().encode(["1", text])


def test_what_is_recorded_is_the_type_and_what_differs_from_the_defaults() -> None:
    plain = TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=Path("dir"))
    assert plain.recorded() == {"tokenizer_type": "HuggingFaceTokenizer"}
    assert plain.files == (Path("dir"),)
    other = TokenizerSettings(
        tokenizer_type="GPT2BPETokenizer",
        vocab_file=Path("v"),
        merge_file=Path("m"),
        special_tokens=("<a>",),
        split_special_tokens=True,
        null_tokenizer_eod_id=0,
    )
    assert other.files == (Path("v"), Path("m"))
    assert other.recorded() == {
        "tokenizer_type": "GPT2BPETokenizer",
        "null_tokenizer_eod_id": 0,
        "special_tokens": ["<a>"],
        "split_special_tokens": True,
    }
    assert pickle.loads(pickle.dumps(other)) == other


@pytest.mark.parametrize("tokenizer_type", ["GPT2", "BertWordPieceCase", "MultimodalTokenizer", "SFTTokenizer"])
def test_types_without_support_are_refused_with_those_that_have_it(tokenizer_type: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load_encoder(tokenizer_type, tmp_path, 1)
    assert str(error.value) == (
        f"--tokenizer-type {tokenizer_type} is not supported: choose one of {', '.join(TOKENIZER_TYPES)}"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tokenizer_type": "HuggingFaceTokenizer"}, "HuggingFaceTokenizer needs --tokenizer-model: give it"),
        ({"tokenizer_type": "Llama2Tokenizer"}, "Llama2Tokenizer needs --tokenizer-model: give it"),
        ({"tokenizer_type": "GPT2BPETokenizer"}, "GPT2BPETokenizer needs --vocab-file: give it"),
        ({"tokenizer_type": "NullTokenizer"}, "NullTokenizer needs --vocab-size: give it"),
        (
            {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": Path("m"), "split_special_tokens": True},
            "SentencePieceTokenizer does not read --split-special-tokens: leave it out",
        ),
        (
            {"tokenizer_type": "SentencePieceTokenizer", "tokenizer_model": Path("m"), "special_tokens": ("<a>",)},
            "SentencePieceTokenizer does not read --tokenizer-special-tokens: leave it out",
        ),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": Path("m"), "vocab_file": Path("v")},
            "HuggingFaceTokenizer does not read --vocab-file: leave it out",
        ),
        (
            {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": Path("nowhere")},
            "--tokenizer-model nowhere does not exist: give the path of a trained tokenizer",
        ),
        (
            {"tokenizer_type": "GPT2BPETokenizer", "vocab_file": Path("/"), "merge_file": Path("nowhere")},
            "--merge-file nowhere does not exist",
        ),
    ],
)
def test_flags_that_do_not_fit_the_type_are_refused(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_encoder(TokenizerSettings(**values), 1)


def test_the_library_of_one_kind_is_not_needed_for_another() -> None:
    """Nor is torch for any of them: workers import this."""
    import subprocess
    import sys

    code = (
        "import sys; from megatron_miniplm.corpus.tokenization.tokenizers import TokenizerSettings, make_encoder; "
        "make_encoder(TokenizerSettings(tokenizer_type='NullTokenizer', vocab_size=9), 1); "
        "print({'torch', 'tokenizers', 'sentencepiece', 'tiktoken', 'gigatoken', 'transformers'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_loading_says_nothing_where_the_fast_road_is_taken(
    bpe_dir: Path, sentencepiece_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load_encoder("HuggingFaceTokenizer", bpe_dir, 1)
        load_encoder("SentencePieceTokenizer", sentencepiece_path, 1)
    assert caplog.messages == []
