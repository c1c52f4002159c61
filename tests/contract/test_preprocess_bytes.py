"""Our `.bin/.idx` against those that Megatron's own tokenizers and IndexedDatasetBuilder make of the same text.

Megatron's `tools/preprocess_data.py` is not in the wheel; `write_with_megatron` is its `Encoder.encode` and
`process_json_file` without the process pool.
"""

import ast
import json
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer

from megatron_miniplm.corpus.build import BuildSettings, build_corpus
from megatron_miniplm.corpus.tokenization.huggingface_encoder import HARD_TEXTS
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer

LIBRARIES = {"HuggingFaceTokenizer": "huggingface", "SentencePieceTokenizer": "sentencepiece"}
ADVERSARIAL_TEXTS = [
    *HARD_TEXTS,
    "",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|> c<|endoftext|><|endoftext|>",
    "<s>",
    "a<s>b </s> <unk> <0x00>",
    "\x00",
    "\n\n\n",
    "e\u0301" * 50,
    "\u202eright to left\u202c \u200d\u200d",
    "z\u0350\u0351\u0352\u0353" * 20,
    "a" * 5000,
    "",
]


def docstrings(limit: int) -> list[str]:
    """Docstrings of the standard library, in the order of its files."""
    found: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                found.append(text)
        if len(found) >= limit:
            break
    return found[:limit]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    prose = docstrings(400)
    return [*ADVERSARIAL_TEXTS[:-1], *prose[:200], "", *prose[200:], ADVERSARIAL_TEXTS[-1]]


@pytest.fixture(scope="module")
def text_path(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(text_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tokenizer of each type, by Megatron's name."""
    directory = tmp_path_factory.mktemp("tokenizers")
    for algorithm in ("bpe", "sentencepiece"):
        training = TrainingSettings(algorithm=algorithm, vocab_size=1500, json_keys=("text",), max_bytes=None)
        train_tokenizer([text_path], directory / algorithm, training)
    return {
        "HuggingFaceTokenizer": directory / "bpe",
        "SentencePieceTokenizer": directory / "sentencepiece" / "tokenizer.model",
    }


def load_with_megatron(tokenizer_type: str, model: Path) -> Any:
    return MegatronTokenizer.from_pretrained(
        tokenizer_path=str(model), metadata_path={"library": LIBRARIES[tokenizer_type]}
    )


def write_with_megatron(prefix: Path, texts: list[str], tokenizer: Any, append_eod: bool) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.vocab_size))
    for text in texts:
        document = list(tokenizer.tokenize(text))
        lengths = [len(document)] if document else []
        if document and append_eod:
            document.append(tokenizer.eod)
            lengths[-1] += 1
        builder.add_document(document, lengths)
    builder.finalize(f"{prefix}.idx")


@pytest.mark.parametrize("append_eod", [True, False])
@pytest.mark.parametrize("tokenizer_type", LIBRARIES)
def test_same_bytes_as_megatron(
    tokenizer_type: str, append_eod: bool, models: dict[str, Path], texts: list[str], text_path: Path, tmp_path: Path
) -> None:
    model = models[tokenizer_type]
    settings = BuildSettings(
        inputs=(text_path,),
        output_prefix=tmp_path / "ours",
        json_keys=("text",),
        tokenizer=TokenizerSettings(tokenizer_type=tokenizer_type, tokenizer_model=model),
        append_eod=append_eod,
    )
    ((ours, manifest),) = build_corpus(settings, num_workers=1).items()
    theirs = tmp_path / "megatron"
    write_with_megatron(theirs, texts, load_with_megatron(tokenizer_type, model), append_eod)
    assert manifest.counts["num_sequences"] < manifest.counts["num_documents"] == len(texts)
    for suffix in ("bin", "idx"):
        assert Path(f"{ours}.{suffix}").read_bytes() == Path(f"{theirs}.{suffix}").read_bytes()


def edit_config(directory: Path, **values: object) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def edit_tokenizer(directory: Path, **values: object) -> None:
    path = directory / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def as_it_is(directory: Path) -> None:
    """The directory that `train-tokenizer` writes."""


def with_bos_template(directory: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.save(str(directory / "tokenizer.json"))


def with_truncation(directory: Path) -> None:
    truncation = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    edit_tokenizer(directory, truncation=truncation)


def with_add_bos_token(directory: Path) -> None:
    edit_config(directory, add_bos_token=True)


def with_new_eos_token(directory: Path) -> None:
    edit_config(directory, eos_token="<|new|>")


def with_sep_token_only(directory: Path) -> None:
    edit_config(directory, eos_token=None, bos_token=None, pad_token=None, sep_token="<|endoftext|>")


def with_eos_token_object(directory: Path) -> None:
    edit_config(directory, eos_token={"__type": "AddedToken", "content": "<|endoftext|>", "special": True})


def with_added_tokens(directory: Path) -> None:
    added = {"content": " x", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    edit_config(directory, added_tokens_decoder={"1500": {**added, "special": False}})


def with_stripping_eos_token(directory: Path) -> None:
    token = {"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": True, "rstrip": True}
    edit_tokenizer(directory, added_tokens=[{**token, "normalized": False, "special": True}])


def with_gpt2_class(directory: Path) -> None:
    edit_config(directory, tokenizer_class="GPT2Tokenizer", add_prefix_space=True)


def with_model_config(directory: Path) -> None:
    (directory / "config.json").write_text(json.dumps({"model_type": "qwen2"}))


@pytest.mark.parametrize(
    "change",
    [
        as_it_is,
        with_bos_template,
        with_truncation,
        with_add_bos_token,
        with_new_eos_token,
        with_sep_token_only,
        with_eos_token_object,
        with_added_tokens,
        with_stripping_eos_token,
        with_gpt2_class,
        with_model_config,
    ],
)
def test_any_directory_gives_the_ids_vocabulary_and_eod_that_megatron_gives(
    change: Any, models: dict[str, Path], texts: list[str], tmp_path: Path
) -> None:
    directory = tmp_path / "tokenizer"
    shutil.copytree(models["HuggingFaceTokenizer"], directory)
    change(directory)
    theirs = load_with_megatron("HuggingFaceTokenizer", directory)
    ours = load_encoder("HuggingFaceTokenizer", directory, num_threads=2)
    assert (ours.vocab_size, ours.eod_id) == (theirs.vocab_size, theirs.eod)
    tokens_T, lengths_N = ours.encode(texts)
    found = [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_N)[:-1])]
    assert found == [theirs.tokenize(text) for text in texts]


def test_the_sentencepiece_model_means_the_same_to_megatron(models: dict[str, Path]) -> None:
    model = models["SentencePieceTokenizer"]
    theirs = load_with_megatron("SentencePieceTokenizer", model)
    ours = load_encoder("SentencePieceTokenizer", model, num_threads=2)
    assert (ours.vocab_size, ours.eod_id) == (theirs.vocab_size, theirs.eod)
