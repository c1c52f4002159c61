from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_miniplm.corpus.tokenizers import TextEncoder, load_encoder
from megatron_miniplm.errors import InputError

TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["<s>", "</s>", "<unk>", "▁", " ", "  ", "\n", "a", "1", "é", "👍🏽"])).map("".join)
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(texts=TEXTS)
def test_sentencepiece_gives_the_ids_of_sentencepiece(
    encode_each: Callable, sp: TextEncoder, sentencepiece_path: Path, texts: list[str]
) -> None:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_path))
    ids = encode_each(sp, texts)
    assert ids == [reference.encode_as_ids(text) for text in texts]
    assert [sp.decode(part) for part in ids] == [text.replace("▁", " ") for text in texts]  # its own sign for a space


def test_a_control_token_in_the_text_is_text_to_sentencepiece_and_a_token_to_bpe(
    encode_each: Callable, sp: TextEncoder, bpe: TextEncoder
) -> None:
    assert sp.eod_id not in encode_each(sp, ["a</s>b"])[0]
    assert bpe.eod_id in encode_each(bpe, ["a<|endoftext|>b"])[0]


def test_properties(bpe: TextEncoder, sp: TextEncoder) -> None:
    assert (bpe.vocab_size, bpe.eod_id) == (600, 0)
    assert (sp.vocab_size, sp.eod_id) == (600, 2)
    assert bpe.versions.keys() == {"tokenizers", "gigatoken"}
    assert sp.versions.keys() == {"sentencepiece"}


def test_no_texts_give_no_ids(encode_each: Callable, bpe: TextEncoder, sp: TextEncoder) -> None:
    assert encode_each(bpe, []) == encode_each(sp, []) == []
    assert encode_each(bpe, [""]) == encode_each(sp, [""]) == [[]]


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
    with pytest.raises(InputError, match=r"is not a SentencePiece model \(.*\): give a \.model file"):
        load_encoder("SentencePieceTokenizer", tmp_path, 1)
