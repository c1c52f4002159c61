"""Which tokenizer goes with an export, from what a run recorded."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.mcore import models as megatron_models
from megatron_miniplm.mcore.huggingface.export_tokens import tokenizer_of_export
from megatron_miniplm.mcore.huggingface.special_tokens import GenerationSettings

VOCABULARY = {"a": 0, "b": 1, "</s>": 2, "<|end|>": 3}
IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}


def tokenizer(directory: Path, eos: str, **config: Any) -> Path:
    made = Tokenizer(models.WordLevel(VOCABULARY, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=made, eos_token=eos).save_pretrained(directory)
    if config:
        (directory / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return directory


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """The args that the checkpoint at hand was saved with."""
    args = argparse.Namespace()
    monkeypatch.setattr(megatron_models, "recorded_args", lambda directory: args)
    return args


def exported(given: Path | None = None, vocab_size: int = 4) -> tuple[Path | None, Any]:
    found = tokenizer_of_export(Path("iter"), given, vocab_size)
    return found.directory, found.generation.files()[0]["eos_token_id"]


def test_the_tokenizer_of_the_run(tmp_path: Path, recorded: argparse.Namespace) -> None:
    recorded.tokenizer_type, recorded.tokenizer_model = "HuggingFaceTokenizer", str(tokenizer(tmp_path, "<|end|>"))
    assert exported() == (tmp_path, 3)
    with pytest.raises(MiniPLMError, match="eos_token_id is 3, but the model's vocabulary has 3 rows"):
        exported(vocab_size=3)


def test_a_model_directory_says_more_than_its_tokenizer(tmp_path: Path, recorded: argparse.Namespace) -> None:
    recorded.tokenizer_type = "HuggingFaceTokenizer"
    recorded.tokenizer_model = str(tokenizer(tmp_path, "<|end|>", eos_token_id=[2, 3]))
    assert exported() == (tmp_path, [2, 3])


def test_what_a_conversion_recorded_stays(tmp_path: Path, recorded: argparse.Namespace) -> None:
    """Also where the source is gone; a tokenizer that is given decides where it contradicts."""
    record = GenerationSettings(token_ids=IDS, generation_config={"top_p": 0.5}).as_record()
    setattr(recorded, megatron_models.GENERATION, record)
    recorded.tokenizer_type, recorded.tokenizer_model = "HuggingFaceTokenizer", str(tmp_path / "gone")
    assert exported() == (None, 2)
    assert exported(tokenizer(tmp_path / "same", "</s>")) == (tmp_path / "same", 2)
    assert exported(tokenizer(tmp_path / "other", "<|end|>")) == (tmp_path / "other", 3)


def test_the_end_of_another_kind_of_tokenizer(tmp_path: Path, recorded: argparse.Namespace) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    recorded.tokenizer_type = "GPT2BPETokenizer"
    recorded.vocab_file, recorded.merge_file = str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    assert exported() == (None, 3)
    (tmp_path / "vocab.json").unlink()
    assert exported() == (None, None)


def test_nothing_is_known(recorded: argparse.Namespace) -> None:
    assert exported() == (None, None)
    recorded.tokenizer_type = "NullTokenizer"
    assert exported() == (None, None)
