"""Our ids against those of Megatron's own tokenizer classes, and the fast roads against the reference libraries on
50 MB of real text.

The arguments of the classes are those that `megatron.core.tokenizers.utils.build_tokenizer` gives them.
"""

import json
import os
import shutil
import sysconfig
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from megatron.core.tokenizers import MegatronTokenizer
from megatron.core.tokenizers.text.libraries.tiktoken_tokenizer import (
    _PATTERN_TIKTOKEN_V1,
    _PATTERN_TIKTOKEN_V2,
    DEFAULT_TIKTOKEN_MAX_VOCAB,
    SPECIAL_TOKENS,
    TikTokenTokenizer,
)
from rank_files import ranked_bytes, write_gpt2_files, write_ranks

from megatron_miniplm.corpus.tokenization.gigatoken_engine import HARD_TEXTS
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tiktoken_encoder import DEFAULT_VOCAB_SIZE, PATTERNS, REQUIRED_SPECIAL_TOKENS
from megatron_miniplm.corpus.tokenization.token_bytes import flatten_ids, split_ids
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder, make_encoder
from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer

CORPUS_BYTES = 50_000_000
BATCH_CHARACTERS = 4_000_000
SUFFIXES = {".py", ".pyi", ".txt", ".md", ".rst", ".json", ".h", ".hpp", ".c", ".cpp", ".cu", ".html", ".js", ".css"}
MAX_FILE_BYTES = 1_000_000
NUM_SPECIAL_TOKENS = 100
ADVERSARIAL_TEXTS = [
    *HARD_TEXTS,
    "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>",
    "a<s>b </s> <unk> <0x00> <SPECIAL_42><mask> <extra>",
    "\x00",
    "e\u0301" * 50,
    "\u202eright to left\u202c \u200d\u200d",
    "z\u0350\u0351\u0352\u0353" * 20,
    "a" * 5000,
    " " * 3000 + "\n" * 3000,
    "ab" * 2000 + "===" * 1001,
]


def real_texts() -> Iterator[str]:
    """Text files of the Python installation, by name, each content once, until there are 50 MB."""
    seen: set[int] = set()
    num_bytes = 0
    for root in (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")):
        for path in sorted(Path(root).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
                continue
            data = path.read_bytes()
            try:
                text = data.decode()
            except UnicodeDecodeError:
                continue
            if hash(data) in seen:
                continue
            seen.add(hash(data))
            yield text
            num_bytes += len(data)
            if num_bytes >= CORPUS_BYTES:
                return


def every_character() -> list[str]:
    """All assigned code points and some others, between letters, digits and spaces; 64 a text."""
    code_points = [*range(0xD800), *range(0xE000, 0x110000)]
    characters = [chr(c) for c in code_points if unicodedata.category(chr(c)) not in {"Cn", "Co"} or c % 1021 == 0]
    around = [f"a{c}b {c}{c}1 {c}A.{c}\n{c} " for c in characters]
    return ["".join(around[start : start + 64]) for start in range(0, len(around), 64)]


@dataclass(frozen=True, kw_only=True)
class Models:
    bpe_dir: Path
    sentencepiece_path: Path
    vocab_path: Path
    merges_path: Path
    ranks_path: Path
    tiktoken_vocab_size: int

    def tiktoken(self, pattern: str, **changes: Any) -> TokenizerSettings:
        return TokenizerSettings(
            tokenizer_type="TikTokenizer",
            tokenizer_model=self.ranks_path,
            vocab_size=self.tiktoken_vocab_size,
            tiktoken_num_special_tokens=NUM_SPECIAL_TOKENS,
            tiktoken_pattern=pattern,
            **changes,
        )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    directory = tmp_path_factory.mktemp("models")
    text_path = directory / "text.jsonl"
    with text_path.open("w") as stream:
        num_characters = 0
        for text in real_texts():
            stream.write(json.dumps({"text": text}) + "\n")
            num_characters += len(text)
            if num_characters > 3_000_000:
                break
    for algorithm in ("bpe", "sentencepiece"):
        training = TrainingSettings(algorithm=algorithm, vocab_size=8000, json_keys=("text",), max_bytes=None)
        train_tokenizer([text_path], directory / algorithm, training)
    bpe = load_encoder("HuggingFaceTokenizer", directory / "bpe", 2)
    tokens = ranked_bytes(bpe.token_bytes or [])
    vocab_path, merges_path = write_gpt2_files(directory, directory / "bpe" / "tokenizer.json")
    return Models(
        bpe_dir=directory / "bpe",
        sentencepiece_path=directory / "sentencepiece" / "tokenizer.model",
        vocab_path=vocab_path,
        merges_path=merges_path,
        ranks_path=write_ranks(directory / "ranks.json", tokens),
        tiktoken_vocab_size=len(tokens) + NUM_SPECIAL_TOKENS,
    )


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = []
    for text in real_texts():
        found.append(text)
        if len(found) == 100:
            break
    return [*ADVERSARIAL_TEXTS, *found]


def assert_same_as(theirs: Any, settings: TokenizerSettings, texts: list[str]) -> None:
    ours = make_encoder(settings, 2)
    assert (ours.vocab_size, ours.eod_id) == (theirs.vocab_size, theirs.eod)
    assert split_ids(*ours.encode(texts)) == [list(theirs.tokenize(text)) for text in texts]


@pytest.mark.parametrize("tokenizer_type", ["SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer"])
def test_sentencepiece(tokenizer_type: str, models: Models, texts: list[str]) -> None:
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(models.sentencepiece_path),
        metadata_path={"library": "sentencepiece"},
        ignore_extra_whitespaces=True,
        legacy=False,
        special_tokens=None,
    )
    settings = TokenizerSettings(tokenizer_type=tokenizer_type, tokenizer_model=models.sentencepiece_path)
    assert_same_as(theirs, settings, texts)


@pytest.mark.parametrize("special_tokens", [None, ["<extra>", *SPECIAL_TOKENS[::-1]]])
@pytest.mark.parametrize("pattern", ["v1", "v2"])
def test_tiktoken(pattern: str, special_tokens: list[str] | None, models: Models, texts: list[str]) -> None:
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(models.ranks_path),
        metadata_path={"library": "tiktoken"},
        pattern=pattern,
        vocab_size=models.tiktoken_vocab_size,
        num_special_tokens=NUM_SPECIAL_TOKENS,
        special_tokens=special_tokens,
    )
    assert_same_as(theirs, models.tiktoken(pattern, special_tokens=tuple(special_tokens or ())), texts)


def test_a_rank_file_may_be_longer_than_the_vocabulary(models: Models, texts: list[str]) -> None:
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(models.ranks_path),
        metadata_path={"library": "tiktoken"},
        vocab_size=3000,
        num_special_tokens=1000,
        special_tokens=None,
    )
    settings = TokenizerSettings(tokenizer_type="TikTokenizer", tokenizer_model=models.ranks_path, vocab_size=3000)
    assert_same_as(theirs, settings, texts)


def test_our_copies_of_tiktokens_constants_are_megatrons() -> None:
    assert PATTERNS == {"v1": _PATTERN_TIKTOKEN_V1, "v2": _PATTERN_TIKTOKEN_V2}
    assert list(REQUIRED_SPECIAL_TOKENS) == SPECIAL_TOKENS
    assert DEFAULT_VOCAB_SIZE == DEFAULT_TIKTOKEN_MAX_VOCAB


@pytest.mark.parametrize("special_tokens", [[], ["<extra>", "the"]])
def test_gpt2(
    special_tokens: list[str], models: Models, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Megatron asks transformers for "gpt2" with the two files; here that name is a directory and not the hub's."""
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    (tmp_path / "gpt2" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    # 0.18 misspells the name under which it hands the merges over, and so takes those of that name.
    shutil.copy(models.merges_path, tmp_path / "gpt2" / "merges.txt")
    monkeypatch.chdir(tmp_path)
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path="GPT2BPETokenizer",
        metadata_path={"library": "megatron"},
        vocab_file=str(models.vocab_path),
        merges_file=str(models.merges_path),
        additional_special_tokens=special_tokens,
        use_fast=True,
        trust_remote_code=False,
        include_special_tokens=True,
    )
    settings = TokenizerSettings(
        tokenizer_type="GPT2BPETokenizer",
        vocab_file=models.vocab_path,
        merge_file=models.merges_path,
        special_tokens=tuple(special_tokens),
    )
    assert_same_as(theirs, settings, texts)


def test_huggingface_with_special_tokens(models: Models, texts: list[str]) -> None:
    special_tokens = ["<extra>", "</s>"]
    theirs = MegatronTokenizer.from_pretrained(
        tokenizer_path=str(models.bpe_dir),
        metadata_path={"library": "huggingface"},
        additional_special_tokens=special_tokens,
    )
    settings = TokenizerSettings(
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=models.bpe_dir,
        special_tokens=tuple(special_tokens),
    )
    assert_same_as(theirs, settings, texts)


@pytest.mark.parametrize("arguments", [{}, {"eod_id": 7}])
def test_null(arguments: dict[str, int]) -> None:
    theirs = MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=500, **arguments)
    settings = TokenizerSettings(
        tokenizer_type="NullTokenizer", vocab_size=500, null_tokenizer_eod_id=arguments.get("eod_id")
    )
    assert_same_as(theirs, settings, ["1 2 3", "499", "0 0"])


Reference = Callable[[list[str]], list[list[int]]]


def huggingface_road(models: Models) -> tuple[TokenizerSettings, Reference]:
    reference = tokenizers.Tokenizer.from_file(str(models.bpe_dir / "tokenizer.json"))
    settings = TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=models.bpe_dir)
    return settings, lambda texts: [encoding.ids for encoding in reference.encode_batch_fast(texts)]


def sentencepiece_road(models: Models) -> tuple[TokenizerSettings, Reference]:
    reference = sentencepiece.SentencePieceProcessor(model_file=str(models.sentencepiece_path))
    settings = TokenizerSettings(tokenizer_type="SentencePieceTokenizer", tokenizer_model=models.sentencepiece_path)
    return settings, lambda texts: reference.encode(texts, num_threads=os.cpu_count() or 1)


def tiktoken_road(models: Models) -> tuple[TokenizerSettings, Reference]:
    reference = TikTokenTokenizer(
        str(models.ranks_path), num_special_tokens=NUM_SPECIAL_TOKENS, vocab_size=models.tiktoken_vocab_size
    ).tokenizer
    return models.tiktoken("v2"), lambda texts: reference.encode_batch(texts, allowed_special="all")


def batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for text in texts:
        batch.append(text)
        num_characters += len(text)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    yield batch


@pytest.mark.slow
@pytest.mark.parametrize("road", [huggingface_road, sentencepiece_road, tiktoken_road])
def test_the_fast_road_is_exact_on_50_megabytes(
    road: Callable[[Models], tuple[TokenizerSettings, Reference]], models: Models
) -> None:
    settings, reference = road(models)
    encoder = make_encoder(settings, 2)
    assert "gigatoken" in encoder.versions
    num_bytes = 0
    for batch in [ADVERSARIAL_TEXTS, every_character(), *batches(real_texts())]:
        expected_T, expected_lengths_N = flatten_ids(reference(batch))
        tokens_T, lengths_N = encoder.encode(batch)
        assert np.array_equal(lengths_N, expected_lengths_N)
        assert np.array_equal(tokens_T, expected_T)
        if "▁" not in "".join(batch):
            assert encoder.decode_batch(tokens_T, lengths_N) == [text.encode() for text in batch]
        num_bytes += sum(len(text.encode()) for text in batch)
    assert num_bytes > CORPUS_BYTES
