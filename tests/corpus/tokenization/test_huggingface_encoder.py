import json
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from rank_files import write_gpt2_files

from megatron_miniplm.artifacts import digest_values
from megatron_miniplm.corpus.tokenization.gigatoken_engine import HARD_TEXTS, GigatokenEngine
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder, make_encoder
from megatron_miniplm.errors import InputError, MissingPackageError

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


def test_a_template_that_adds_nothing_is_no_part_of_the_fingerprint(bpe_dir: Path, tmp_path: Path) -> None:
    """transformers puts one into the tokenizer of a Llama directory; one that adds a token is another tokenizer."""
    fingerprints = []
    for name, template in (("empty", "$A"), ("eos", "$A <|endoftext|>")):
        shutil.copytree(bpe_dir, tmp_path / name)
        tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        tokens = [("<|endoftext|>", 0)] if "<" in template else []
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=template, pair="$A $B", special_tokens=tokens
        )
        tokenizer.save(str(tmp_path / name / "tokenizer.json"))
        fingerprints.append(load_encoder("HuggingFaceTokenizer", tmp_path / name, 1).fingerprint())
    plain = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    plain.post_processor = None
    shutil.copytree(bpe_dir, tmp_path / "plain")
    plain.save(str(tmp_path / "plain" / "tokenizer.json"))
    expected = load_encoder("HuggingFaceTokenizer", tmp_path / "plain", 1).fingerprint()
    assert fingerprints[0] == expected != fingerprints[1]


def test_the_fingerprint_is_of_the_content_not_of_the_place(bpe: TextEncoder, bpe_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(bpe_dir, tmp_path / "copy")
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy", 1).fingerprint() == bpe.fingerprint()
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy" / "tokenizer.json", 1).fingerprint() == (
        bpe.fingerprint()
    )
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    assert bpe.fingerprint() == digest_values("HuggingFaceTokenizer", reference.to_str(), 0)
    edit(tmp_path / "copy" / "tokenizer_config.json", eos_token=None)
    assert load_encoder("HuggingFaceTokenizer", tmp_path / "copy", 1).fingerprint() != bpe.fingerprint()


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_template_that_puts_tokens_around_every_text(encode_each: Callable, bpe_dir: Path, tmp_path: Path) -> None:
    """gigatoken leaves them out; Llama 3's tokenizer has such a template."""
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    reference.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A . <|endoftext|>", special_tokens=[("<|endoftext|>", 0), (".", 13)]
    )
    reference.enable_truncation(5)
    reference.save(str(tmp_path / "tokenizer.json"))
    reference.no_truncation()
    encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=2)
    assert "gigatoken" in encoder.versions
    assert encode_each(encoder, list(HARD_TEXTS)) == [
        encoding.ids for encoding in reference.encode_batch(list(HARD_TEXTS))
    ]


def test_a_template_before_the_text_is_its_prefix(bpe_dir: Path, tmp_path: Path) -> None:
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    reference.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    reference.save(str(tmp_path / "tokenizer.json"))
    encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=1)
    tokens_T, _ = encoder.encode(["Some text."])
    assert encoder.text_prefix == b"<|endoftext|>"
    assert encoder.token_bytes is not None
    assert b"".join(encoder.token_bytes[token] for token in tokens_T) == b"<|endoftext|>Some text."


def test_a_tokenizer_that_gigatoken_would_encode_differently_falls_back_to_the_reference(
    encode_each: Callable, bpe_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = GigatokenEngine.encode

    def differs_once(self: GigatokenEngine, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        tokens_T, lengths_N = exact(self, texts)
        return np.append(tokens_T[:-1], tokens_T[-1] + 1), lengths_N

    monkeypatch.setattr(GigatokenEngine, "encode", differs_once)
    with caplog.at_level(logging.INFO):
        encoder = load_encoder("HuggingFaceTokenizer", bpe_dir, num_threads=2)
    assert "gigatoken" not in encoder.versions
    assert caplog.messages == [
        "encoding with the slower HuggingFace tokenizers: gigatoken gives other ids for this one"
    ]
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    assert encode_each(encoder, list(HARD_TEXTS)) == [
        encoding.ids for encoding in reference.encode_batch(list(HARD_TEXTS))
    ]


@pytest.fixture(scope="module", params=["prepend", "metaspace"])
def llama_style(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """SentencePiece's BPE as HuggingFace stores it: spaces as `▁`, a token for every byte, and a space put first."""
    byte_pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<s>", *byte_pieces, "▁", *"abcdeh", "▁a", "▁b", "ab", "▁ab", "é", "日", "▁日"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("▁", "日")]
    model = tokenizers.models.BPE(
        {piece: index for index, piece in enumerate(pieces)}, merges, byte_fallback=True, fuse_unk=True
    )
    tokenizer = tokenizers.Tokenizer(model)
    if request.param == "prepend":
        tokenizer.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(["<s>"])
    directory = tmp_path_factory.mktemp("llama")
    tokenizer.save(str(directory / "tokenizer.json"))
    return load_encoder("HuggingFaceTokenizer", directory, num_threads=1)


@given(text=st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab é日\n▁"))
def test_the_bytes_of_a_llama_style_tokenizer(llama_style: TextEncoder, text: str) -> None:
    table = llama_style.token_bytes
    assert table is not None
    assert llama_style.text_prefix == b" "
    tokens_T, lengths_N = llama_style.encode([text])
    joined = b"".join(table[token] for token in tokens_T)
    assert joined == b" " + text.encode() or len(joined) != 1 + len(text.encode())
    if "▁" not in text and not text.startswith(" "):
        assert llama_style.decode_batch(tokens_T, lengths_N) == [text.encode()]
        assert llama_style.decode(tokens_T.tolist()) == text


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
    pytest.importorskip("transformers")
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


def load_split(path: Path) -> TextEncoder:
    settings = TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=path, split_special_tokens=True)
    return make_encoder(settings, 2)


@pytest.fixture(scope="module")
def many_added_dir(bpe_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Special tokens and others, overlapping, in the vocabulary and outside it."""
    directory = tmp_path_factory.mktemp("many_added")
    shutil.copy(bpe_dir / "tokenizer_config.json", directory)
    tokenizer = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "the"])
    tokenizer.add_tokens(["<tool>", "<|im_end|><x>", " spaced "])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


ADDED_TEXTS = st.lists(
    st.lists(
        st.sampled_from(
            [
                "<|im_start|>",
                "<|im_end|>",
                "<x>",
                "<tool>",
                " spaced ",
                "the",
                "<|endoftext|>",
                " ",
                "\n",
                "a",
                "é",
                "<|",
            ]
        )
    ).map("".join)
)


@given(texts=ADDED_TEXTS)
def test_special_tokens_are_split_as_transformers_splits_them(
    encode_each: Callable, many_added_dir: Path, many_added: tuple[TextEncoder, TextEncoder], texts: list[str]
) -> None:
    reference = tokenizers.Tokenizer.from_file(str(many_added_dir / "tokenizer.json"))
    whole, split = many_added
    assert encode_each(whole, texts) == [encoding.ids for encoding in reference.encode_batch(texts)]
    reference.encode_special_tokens = True
    assert encode_each(split, texts) == [encoding.ids for encoding in reference.encode_batch(texts)]
    for encoder in many_added:
        assert encoder.decode_batch(*encoder.encode(texts)) == [text.encode() for text in texts]


@pytest.fixture(scope="module")
def many_added(many_added_dir: Path) -> tuple[TextEncoder, TextEncoder]:
    return load_encoder("HuggingFaceTokenizer", many_added_dir, 2), load_split(many_added_dir)


def test_gigatoken_splits_special_tokens_too(bpe: TextEncoder, bpe_dir: Path, encode_each: Callable) -> None:
    split = load_split(bpe_dir)
    assert "gigatoken" in split.versions
    assert split.fingerprint() != bpe.fingerprint()
    assert (split.vocab_size, split.eod_id) == (bpe.vocab_size, bpe.eod_id)
    assert encode_each(bpe, ["<|endoftext|>"]) == [[0]]
    assert 0 not in encode_each(split, ["<|endoftext|>"])[0]


def change_tokenizer(source: Path, directory: Path, **parts: object) -> TextEncoder:
    shutil.copy(source / "tokenizer.json", directory)
    edit(directory / "tokenizer.json", **parts)
    return load_encoder("HuggingFaceTokenizer", directory, 1)


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithNext", "invert": False}


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{**SPLIT, "behavior": "Removed"}, BYTE_LEVEL]}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]}},
        {"decoder": {"type": "Fuse"}},
        {"decoder": None},
    ],
)
def test_what_changes_the_text_has_no_bytes_for_its_tokens(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, parts: dict
) -> None:
    encoder = change_tokenizer(bpe_dir, tmp_path, **parts)
    assert encoder.token_bytes is None
    texts = ["A cafe\u0301  is É", "", " a"]
    ids = encode_each(encoder, texts)
    assert encoder.decode_batch(*encoder.encode(texts)) == [encoder.decode(part).encode() for part in ids]
    for text, part in zip(texts, ids, strict=True):
        stops = encoder.token_stops(text).tolist()
        assert len(stops) == len(part)
        assert stops == sorted(stops)


def test_nfc_has_bytes_that_do_not_add_up_for_the_text_that_it_changes(bpe_dir: Path, tmp_path: Path) -> None:
    """Qwen's tokenizers normalise so, and nearly all text is in NFC already."""
    encoder = change_tokenizer(bpe_dir, tmp_path, normalizer={"type": "NFC"})
    assert encoder.token_bytes is not None
    for text, same in (("A café is É", True), ("A cafe\u0301 is É", False)):
        tokens_T, _ = encoder.encode([text])
        assert (sum(len(encoder.token_bytes[token]) for token in tokens_T) == len(text.encode())) is same


@pytest.mark.parametrize(
    "parts",
    [
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [SPLIT, DIGITS, BYTE_LEVEL],
            }
        },
        {"post_processor": BYTE_LEVEL},
        {"post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL]}},
    ],
)
def test_what_only_splits_has_bytes_and_stops_that_keep_white_space(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, parts: dict
) -> None:
    encoder = change_tokenizer(bpe_dir, tmp_path, **parts)
    text = "a  b \n\n  c 12  "
    (ids,) = encode_each(encoder, [text])
    assert encoder.token_bytes is not None
    pieces = [encoder.token_bytes[token] for token in ids]
    assert b"".join(pieces) == text.encode()
    assert encoder.token_stops(text).tolist() == [len(b"".join(pieces[: stop + 1])) for stop in range(len(pieces))]


def test_tokens_of_a_template_end_where_the_text_before_them_does(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path
) -> None:
    template = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    encoder = change_tokenizer(bpe_dir, tmp_path, post_processor=json.loads(template.__getstate__()))
    assert encode_each(encoder, ["é"])[0][::3] == [0, 0]
    stops = encoder.token_stops("é").tolist()
    assert stops[0] == 0
    assert stops[-2:] == [2, 2]


def test_a_tokenizer_that_only_transformers_can_load_asks_for_it(
    bpe_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(bpe_dir, tmp_path / "copy")
    edit(tmp_path / "copy" / "tokenizer_config.json", eos_token="<|new|>")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"copy needs transformers: pip install transformers$"):
        load_encoder("HuggingFaceTokenizer", tmp_path / "copy", num_threads=1)


def test_what_transformers_changes_is_followed_and_said(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Byte-equal files give another tokenizer where a config.json names a model with a class of its own."""
    transformers = pytest.importorskip("transformers")
    shutil.copytree(bpe_dir, tmp_path / "qwen2")
    (tmp_path / "qwen2" / "config.json").write_text('{"model_type": "qwen2"}')
    with caplog.at_level(logging.WARNING):
        encoder = load_encoder("HuggingFaceTokenizer", tmp_path / "qwen2", 1)
    built = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "qwen2"))
    assert encode_each(encoder, ["Hello 1234 world"]) == [built("Hello 1234 world")["input_ids"]]
    written = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    changes = (
        json.loads(written.to_str())["pre_tokenizer"] != json.loads(built.backend_tokenizer.to_str())["pre_tokenizer"]
    )
    assert (encoder.changed_by is not None) == changes
    assert not changes or f"builds a {type(built).__name__} from {tmp_path / 'qwen2'}, with another" in caplog.text


def test_special_tokens_are_added_as_megatron_adds_them(encode_each: Callable, bpe: TextEncoder, bpe_dir: Path) -> None:
    pytest.importorskip("transformers")
    settings = TokenizerSettings(
        tokenizer_type="HuggingFaceTokenizer", tokenizer_model=bpe_dir, special_tokens=("<new>", "<|endoftext|>")
    )
    encoder = make_encoder(settings, 1)
    assert (encoder.vocab_size, encoder.eod_id) == (601, 0)
    assert encode_each(encoder, ["<new>"]) == [[600]]
    assert encoder.fingerprint() != bpe.fingerprint()


@pytest.fixture(scope="module")
def gpt2_settings(bpe_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenizerSettings:
    vocab_path, merges_path = write_gpt2_files(tmp_path_factory.mktemp("gpt2"), bpe_dir / "tokenizer.json")
    return TokenizerSettings(tokenizer_type="GPT2BPETokenizer", vocab_file=vocab_path, merge_file=merges_path)


def test_gpt2_files_give_the_ids_of_the_tokenizer_they_came_from(
    encode_each: Callable, bpe: TextEncoder, gpt2_settings: TokenizerSettings
) -> None:
    encoder = make_encoder(gpt2_settings, 2)
    assert encoder.versions.keys() == {"tokenizers", "gigatoken"}
    assert (encoder.vocab_size, encoder.eod_id) == (600, 0)
    assert encode_each(encoder, HARD_TEXTS) == encode_each(bpe, HARD_TEXTS)


def test_gpt2_files_that_are_none_are_refused(gpt2_settings: TokenizerSettings, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("[]")
    settings = TokenizerSettings(
        tokenizer_type="GPT2BPETokenizer", vocab_file=tmp_path / "vocab.json", merge_file=gpt2_settings.merge_file
    )
    with pytest.raises(InputError, match=r"vocab\.json and .*merges\.txt are not the vocab\.json and merges\.txt of"):
        make_encoder(settings, 1)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
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
