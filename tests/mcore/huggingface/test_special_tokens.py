"""Ids of special tokens from sources and tokenizers, and what transformers makes of the exported files."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.mcore import checkpoints
from megatron_miniplm.mcore.huggingface.special_tokens import UNKNOWN, GenerationSettings, tokenizer_of_export

LLAMA = {"model_type": "llama", "num_attention_heads": 4, "hidden_size": 32}


def write(directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**LLAMA, **config}))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def source(directory: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> GenerationSettings:
    found = GenerationSettings.of_model(write(directory, config, generation))
    assert found is not None
    return found


def by_transformers(settings: GenerationSettings, directory: Path) -> tuple[Any, GenerationConfig]:
    ids, generation = settings.files()
    write(directory, ids, generation)
    return AutoConfig.from_pretrained(directory), GenerationConfig.from_pretrained(directory)


def tokenizer_with(bos: int | None, eos: int | None, pad: int | None) -> GenerationSettings:
    return GenerationSettings(token_ids={"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad})


@pytest.mark.parametrize(("bos", "eos", "pad"), [("<s>", "</s>", None), (None, "<s>", "<pad>"), (None, None, None)])
def test_ids_of_a_tokenizer(tmp_path: Path, bos: str | None, eos: str | None, pad: str | None) -> None:
    vocabulary = {"a": 0, "<pad>": 1, "</s>": 2, "<s>": 3}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad).save_pretrained(
        tmp_path
    )
    assert GenerationSettings.of_tokenizer(tmp_path).token_ids == {
        name: None if token is None else vocabulary[token]
        for name, token in (("bos_token_id", bos), ("eos_token_id", eos), ("pad_token_id", pad))
    }


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MiniPLMError, match="transformers cannot load the tokenizer"):
        GenerationSettings.of_tokenizer(tmp_path)


def test_unknown_ids_are_not_replaced_by_the_familys_defaults(tmp_path: Path) -> None:
    """A Llama without them would end at token 2."""
    assert AutoConfig.for_model("llama").eos_token_id == 2
    config, generation = by_transformers(UNKNOWN, tmp_path)
    for found in (config, generation):
        assert (found.bos_token_id, found.eos_token_id, found.pad_token_id) == (None, None, None)


def test_a_source_comes_back_as_it_was(tmp_path: Path) -> None:
    ids = {"bos_token_id": 5, "eos_token_id": [7, 9], "pad_token_id": 0}
    generation = {**ids, "eos_token_id": [7, 9, 11], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    settings = GenerationSettings.recorded(
        json.loads(json.dumps(source(tmp_path / "from", ids, generation).as_record()))
    )
    config, found = by_transformers(settings, tmp_path / "to")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, [7, 9], 0)
    assert (found.eos_token_id, found.temperature, found.top_p, found.do_sample) == ([7, 9, 11], 0.6, 0.9, True)
    assert json.loads((tmp_path / "to" / "generation_config.json").read_text()) == generation


def test_another_tokenizer_decides_where_it_contradicts(tmp_path: Path) -> None:
    settings = source(tmp_path / "from", {"bos_token_id": 1, "eos_token_id": [2, 3]}, {"eos_token_id": 2, "top_k": 4})
    config, generation = by_transformers(settings.with_tokenizer(tokenizer_with(None, 3, 6)), tmp_path / "to")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2, 3], 6)
    assert (generation.eos_token_id, generation.top_k) == (3, 4)
    assert UNKNOWN.with_tokenizer(tokenizer_with(None, 0, None)).files()[1] == {"eos_token_id": 0}


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    tokenizer_with(0, 9, None).require_below(10, tmp_path)
    with pytest.raises(MiniPLMError, match="eos_token_id is 9, but the model's vocabulary has 9 rows"):
        tokenizer_with(0, 9, None).require_below(9, tmp_path)


@pytest.mark.parametrize("damaged", ["x", {}, [None], 1.5, True])
def test_damaged_ids_are_refused_by_name(tmp_path: Path, damaged: Any) -> None:
    with pytest.raises(MiniPLMError, match=r"config\.json: eos_token_id is .*expected a token id"):
        source(tmp_path, {"eos_token_id": damaged})
    with pytest.raises(MiniPLMError, match=r"generation_config\.json: eos_token_id is .*expected a token id"):
        source(tmp_path, {}, {"eos_token_id": damaged})


def test_a_tokenizer_directory_is_no_source(tmp_path: Path) -> None:
    assert GenerationSettings.of_model(tmp_path) is None


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
    monkeypatch.setattr(checkpoints, "recorded_args", lambda directory: args)
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
    setattr(recorded, checkpoints.GENERATION, record)
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
