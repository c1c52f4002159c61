import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_miniplm.corpus.tokenizers import HARD_TEXTS, TextEncoder, load_encoder
from megatron_miniplm.errors import InputError

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["<s>", "</s>", "<|endoftext|>", " ", "  ", "\n", "\t", "a", "1", "é", "👍🏽", "'s"])).map(
        "".join
    )
)


@pytest.fixture(scope="module")
def bpe(bpe_dir: Path) -> TextEncoder:
    return load_encoder("HuggingFaceTokenizer", bpe_dir, num_threads=2)


@pytest.fixture(scope="module")
def sp(sentencepiece_path: Path) -> TextEncoder:
    return load_encoder("SentencePieceTokenizer", sentencepiece_path, num_threads=2)


def split(encoder: TextEncoder, texts: list[str]) -> list[list[int]]:
    tokens_T, lengths_N = encoder.encode(texts)
    assert len(lengths_N) == len(texts)
    assert lengths_N.sum() == len(tokens_T)
    return [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_N)[:-1])] if texts else []


@given(texts=TEXTS)
def test_bpe_gives_the_ids_of_tokenizers_and_loses_nothing(bpe: TextEncoder, bpe_dir: Path, texts: list[str]) -> None:
    assert "gigatoken" in bpe.versions
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    ids = split(bpe, texts)
    assert ids == [encoding.ids for encoding in reference.encode_batch(texts)]
    assert [bpe.decode(part) for part in ids] == texts


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(texts=TEXTS)
def test_sentencepiece_gives_the_ids_of_sentencepiece(
    sp: TextEncoder, sentencepiece_path: Path, texts: list[str]
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_path))
    ids = split(sp, texts)
    assert ids == [reference.encode_as_ids(text) for text in texts]
    assert [sp.decode(part) for part in ids] == texts


def test_a_control_token_in_the_text_is_text_to_sentencepiece_and_a_token_to_bpe(
    sp: TextEncoder, bpe: TextEncoder
) -> None:
    assert sp.eod_id not in split(sp, ["a</s>b"])[0]
    assert bpe.eod_id in split(bpe, ["a<|endoftext|>b"])[0]


def test_properties(bpe: TextEncoder, sp: TextEncoder) -> None:
    assert (bpe.vocab_size, bpe.eod_id) == (600, 0)
    assert (sp.vocab_size, sp.eod_id) == (600, 2)
    assert bpe.versions.keys() == {"tokenizers", "gigatoken"}
    assert sp.versions.keys() == {"sentencepiece"}


def test_no_texts_give_no_ids(bpe: TextEncoder, sp: TextEncoder) -> None:
    assert split(bpe, []) == split(sp, []) == []
    assert split(bpe, [""]) == split(sp, [""]) == [[]]


def test_the_fingerprint_is_of_the_content_not_of_the_place(bpe: TextEncoder, bpe_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe_dir, tmp_path / "copy")
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy", 1).fingerprint() == bpe.fingerprint()
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy" / "tokenizer.json", 1).fingerprint() == (
        bpe.fingerprint()
    )
    edit(tmp_path / "copy" / "tokenizer_config.json", eos_token=None)
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy", 1).fingerprint() != bpe.fingerprint()


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_tokenizer_that_gigatoken_would_encode_differently_falls_back_to_the_reference(
    bpe_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A template that puts a token in front of every text: gigatoken leaves it out."""
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    reference.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    reference.enable_truncation(5)
    reference.save(str(tmp_path / "tokenizer.json"))
    reference.no_truncation()
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=2)
    assert "gigatoken" not in encoder.versions
    assert caplog.messages == ["encoding with the slower HuggingFace tokenizers: gigatoken gives other ids for this one"]
    assert split(encoder, list(HARD_TEXTS)) == [encoding.ids for encoding in reference.encode_batch(list(HARD_TEXTS))]


def test_a_tokenizer_that_gigatoken_does_not_support_falls_back_to_the_reference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    unigram.save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=2)
    assert "gigatoken does not support this one" in caplog.text
    assert split(encoder, ["ab", "", "c"]) == [[1, 2], [], [0]]


def test_a_tokenizer_whose_settings_change_it_is_loaded_through_transformers(
    bpe_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A named token that tokenizer.json does not have is added by transformers, and so by Megatron."""
    shutil.copytree(bpe_dir, tmp_path / "copy")
    edit(tmp_path / "copy" / "tokenizer_config.json", eos_token="<|new|>")
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path / "copy", num_threads=2)
    assert "is not a plain fast tokenizer: loading it through transformers, as Megatron does" in caplog.text
    assert (encoder.vocab_size, encoder.eod_id) == (601, 600)
    assert split(encoder, ["<|new|>"]) == [[600]]


def test_a_tokenizer_without_an_end_of_sequence_token_has_no_eod(bpe_dir: Path, tmp_path: Path) -> None:
    shutil.copy(bpe_dir / "tokenizer.json", tmp_path)
    assert load_encoder("HuggingFaceTokenizer", tmp_path, 1).eod_id is None


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tokenizer-type GPT2 is unknown: choose one of HuggingFaceTokenizer, Sent"):
        load_encoder("GPT2", tmp_path, 1)
    with pytest.raises(InputError, match=r"--tokenizer-model .*nowhere does not exist: give the path"):
        load_encoder("HuggingFaceTokenizer", tmp_path / "nowhere", 1)
    with pytest.raises(InputError, match=r"has no tokenizer\.json: give the directory of a HuggingFace fast tokenizer"):
        load_encoder("HuggingFaceTokenizer", tmp_path, 1)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer \(.*\): save it again"):
        load_encoder("HuggingFaceTokenizer", tmp_path, 1)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not valid JSON"):
        load_encoder("HuggingFaceTokenizer", tmp_path, 1)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a JSON object"):
        load_encoder("HuggingFaceTokenizer", tmp_path, 1)
    with pytest.raises(InputError, match=r"is not a SentencePiece model \(.*\): give a \.model file"):
        load_encoder("SentencePieceTokenizer", tmp_path / "tokenizer.json", 1)
