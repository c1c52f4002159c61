"""Small tokenizers of both kinds, trained once on English prose of the Python installation; units of any size."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer

Split = Callable[[TextEncoder, Sequence[str]], list[list[int]]]


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


@pytest.fixture(scope="session")
def bpe(bpe_dir: Path) -> TextEncoder:
    return load_encoder("HuggingFaceTokenizer", bpe_dir, num_threads=2)


@pytest.fixture(scope="session")
def sp(sentencepiece_path: Path) -> TextEncoder:
    return load_encoder("SentencePieceTokenizer", sentencepiece_path, num_threads=2)


@pytest.fixture(scope="session")
def encode_each() -> Split:
    """Encode texts and give one list of ids each."""

    def encode(encoder: TextEncoder, texts: Sequence[str]) -> list[list[int]]:
        tokens_T, lengths_N = encoder.encode(texts)
        assert len(lengths_N) == len(texts)
        assert lengths_N.sum() == len(tokens_T)
        return [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_N)[:-1])] if texts else []

    return encode


@pytest.fixture
def unit_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the size of units."""

    def set_size(size: int) -> None:
        monkeypatch.setattr(sources, "UNIT_BYTES", size)
        monkeypatch.setattr(units, "UNIT_BYTES", size)

    return set_size
