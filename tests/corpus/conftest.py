"""Small tokenizers of both kinds, trained once on English prose of the Python installation."""

import json
from pathlib import Path

import pytest
from pydoc_data.topics import topics

from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer


@pytest.fixture(scope="session")
def prose_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prose") / "prose.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.values()), encoding="utf-8")
    return path


def _train(algorithm: str, prose_path: Path, output_dir: Path) -> Path:
    settings = TrainingSettings(algorithm=algorithm, vocab_size=600, json_keys=("text",), max_bytes=200_000)
    train_tokenizer([prose_path], output_dir, settings)
    return output_dir


@pytest.fixture(scope="session")
def bpe_dir(prose_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train("bpe", prose_path, tmp_path_factory.mktemp("tokenizers") / "bpe")


@pytest.fixture(scope="session")
def sentencepiece_path(prose_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train("sentencepiece", prose_path, tmp_path_factory.mktemp("tokenizers") / "sp") / "tokenizer.model"
