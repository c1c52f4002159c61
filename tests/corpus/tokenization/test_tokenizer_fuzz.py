"""A tokenizer.json that somebody has damaged, or made up, encodes text or is refused in one line."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from damage import NO_FILES, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.tokenization.gigatoken_engine import named_in_rust_errors
from megatron_miniplm.corpus.tokenization.huggingface_encoder import HuggingFaceEncoder
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.errors import InputError

TEXTS = ["", "ab ab", "é\n<end> a", "\0\U0001f600", "a" * 100]


def byte_level() -> tokenizers.Tokenizer:
    """A byte-level BPE of a few pieces, with every step that a tokenizer.json can have."""
    vocabulary = {piece: index for index, piece in enumerate(["a", "b", "Ġ", "Ã", "©", "Ċ", "ab", "Ġab"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [("a", "b"), ("Ġ", "ab")]))
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\s+|\w+"), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([tokenizers.AddedToken("<end>", normalized=False, special=True)])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("<end> $A", special_tokens=[("<end>", 8)])
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding()
    return tokenizer


def fallback() -> tokenizers.Tokenizer:
    """SentencePiece's BPE with byte fallback, as Llama 2 has it."""
    vocabulary = {"<unk>": 0, "<0x61>": 1, "▁": 2, "a": 3, "b": 4, "▁a": 5}
    model = tokenizers.models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def unigram() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("▁ab", -2.0)], 0))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    return tokenizer


KINDS: dict[str, dict[str, Any]] = {
    kind.__name__: json.loads(kind().to_str()) for kind in (byte_level, fallback, unigram)
}
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "model_max_length": 1000}


def use(directory: Path) -> None:
    """Everything that is done with a tokenizer."""
    encoder = load_encoder("HuggingFaceTokenizer", directory, num_threads=1)
    tokens_T, lengths_N = encoder.encode(TEXTS)
    assert (len(lengths_N), lengths_N.sum()) == (len(TEXTS), len(tokens_T))
    encoder.fingerprint()
    for text in TEXTS:
        stops_L = encoder.token_stops(text)
        assert (np.diff(stops_L) >= 0).all()
    encoder.decode(tokens_T.tolist())
    encoder.decode_batch(tokens_T, lengths_N)
    _ = encoder.token_bytes, encoder.text_prefix


@pytest.mark.parametrize(
    ("name", "size_bytes"), [("tokenizer.json", (256 << 20) + 1), ("tokenizer_config.json", (16 << 20) + 1)]
)
def test_a_file_that_is_too_large(name: str, size_bytes: int, tmp_path: Path) -> None:
    """Refused by its size, before anything is read."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(KINDS["byte_level"]))
    with (tmp_path / name).open("wb") as stream:
        stream.truncate(size_bytes)
    with pytest.raises(InputError, match=rf"{name} has {size_bytes:,} bytes, expected at most {size_bytes - 1:,}"):
        use(tmp_path)


def test_a_failure_within_the_library(tmp_path: Path) -> None:
    """Wherever the tokenizers library is called, its errors name the file in one line."""
    (tmp_path / "tokenizer.json").write_text(json.dumps(KINDS["fallback"]))
    encoder = load_encoder("HuggingFaceTokenizer", tmp_path, num_threads=1)
    assert isinstance(encoder, HuggingFaceEncoder)
    encoder._reference.model = tokenizers.models.BPE({"a": 0}, [], unk_token="<unk>")
    for use_text in (encoder.encode, lambda texts: encoder.token_stops(texts[0])):
        with pytest.raises(InputError, match=rf"{tmp_path}: the tokenizers library failed on a text \(Unk token"):
            use_text(["é"])


def test_a_panic_of_the_library_and_an_error_of_ours() -> None:
    broken = copy.deepcopy(KINDS["fallback"])
    broken["model"]["continuing_subword_prefix"] = "#########"
    with pytest.raises(InputError, match=r"^files: the tokenizers library failed"), named_in_rust_errors("files"):
        tokenizers.Tokenizer.from_str(json.dumps(broken))
    with pytest.raises(KeyError), named_in_rust_errors("files"):
        KINDS["none"]


@pytest.mark.parametrize("place", ["vocab", "added_tokens"])
def test_ids_far_beyond_the_vocabulary(place: str, tmp_path: Path) -> None:
    config = copy.deepcopy(KINDS["byte_level"])
    if place == "vocab":
        config["model"]["vocab"]["b"] = (1 << 32) - 1
    else:
        config["model"]["vocab"]["<end>"] = config["added_tokens"][0]["id"] = (1 << 32) - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has the token id 4,294,967,295, expected ids below 4,194,304"):
        use(tmp_path)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tokenizers are damaged. All libraries are loaded: what they take is not an example's."""
    directory = tmp_path_factory.mktemp("fuzzed")
    (directory / "tokenizer.json").write_text(json.dumps(KINDS["byte_level"]))
    (directory / "tokenizer_config.json").write_text(json.dumps(CONFIG | {"an_option": 1}))
    use(directory)
    return directory


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_that_are_damaged(kind: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(KINDS[kind]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(CONFIG | {"eos_token": None}))
    use(tmp_path)


@fuzz("tokenizer", 60)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)))
def test_fuzz_tokenizer(directory: Path, data: st.DataObject, kind: str) -> None:
    config = CONFIG | ({} if kind == "byte_level" else {"eos_token": None})
    put(directory / "tokenizer_config.json", json.dumps(config).encode())
    put(directory / "tokenizer.json", json.dumps(KINDS[kind]).encode())
    match data.draw(st.sampled_from(("tokenizer", "tokenizer", "tokenizer", "tokenizer", "config", "no file"))):
        case "tokenizer":
            (directory / "tokenizer.json").write_bytes(data.draw(damaged_json(KINDS[kind])))
        case "config":
            (directory / "tokenizer_config.json").write_bytes(data.draw(damaged_json(config)))
        case "no file":
            name = data.draw(st.sampled_from(("tokenizer.json", "tokenizer_config.json")))
            put_no_file(directory / name, data.draw(st.sampled_from(NO_FILES)))
    error = refusal_of(lambda: use(directory))
    assert error is None or str(directory) in str(error) or "--tokenizer" in str(error)
