import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus import huggingface_encoder
from megatron_miniplm.corpus.huggingface_encoder import HARD_TEXTS
from megatron_miniplm.corpus.tokenizers import TextEncoder, load_encoder

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["<|endoftext|>", " ", "  ", "\n", "\t", "a", "1", "é", "👍🏽", "'s"])).map("".join)
)


@given(texts=TEXTS)
def test_bpe_gives_the_ids_of_tokenizers_and_loses_nothing(
    encode_each: Callable, bpe: TextEncoder, bpe_dir: Path, texts: list[str]
) -> None:
    assert "gigatoken" in bpe.versions
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    ids = encode_each(bpe, texts)
    assert ids == [encoding.ids for encoding in reference.encode_batch(texts)]
    assert [bpe.decode(part) for part in ids] == texts


def test_an_engine_that_was_made_anew_gives_the_same_ids(
    encode_each: Callable, bpe: TextEncoder, bpe_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_encoder, "ENGINE_LIFE_CHARACTERS", 1)
    encoder = load_encoder("HuggingFaceTokenizer", bpe_dir, num_threads=2)
    for _ in range(3):
        assert encode_each(encoder, list(HARD_TEXTS)) == encode_each(bpe, list(HARD_TEXTS))


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
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
    assert caplog.messages == [
        "encoding with the slower HuggingFace tokenizers: gigatoken gives other ids for this one"
    ]
    assert encode_each(encoder, list(HARD_TEXTS)) == [
        encoding.ids for encoding in reference.encode_batch(list(HARD_TEXTS))
    ]


def test_a_tokenizer_that_gigatoken_does_not_support_falls_back_to_the_reference(
    encode_each: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0))
    unigram.save(str(tmp_path / "tokenizer.json"))
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=2)
    assert "gigatoken does not support this one" in caplog.text
    assert encode_each(encoder, ["ab", "", "c"]) == [[1, 2], [], [0]]


def test_a_tokenizer_whose_settings_change_it_is_loaded_through_transformers(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A named token that tokenizer.json does not have is added by transformers, and so by Megatron."""
    shutil.copytree(bpe_dir, tmp_path / "copy")
    edit(tmp_path / "copy" / "tokenizer_config.json", eos_token="<|new|>")
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path / "copy", num_threads=2)
    assert "is not a plain fast tokenizer: loading it through transformers, as Megatron does" in caplog.text
    assert (encoder.vocab_size, encoder.eod_id) == (601, 600)
    assert encode_each(encoder, ["<|new|>"]) == [[600]]


def test_a_tokenizer_without_an_end_of_sequence_token_has_no_eod(bpe_dir: Path, tmp_path: Path) -> None:
    shutil.copy(bpe_dir / "tokenizer.json", tmp_path)
    assert load_encoder("HuggingFaceTokenizer", tmp_path, 1).eod_id is None
