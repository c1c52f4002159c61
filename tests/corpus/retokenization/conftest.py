"""Texts of many units, and the settings of two tokenizers."""

from pathlib import Path

import numpy as np
import pytest
from retokenized import NUM_DOCUMENTS, WORDS

from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.retokenization import from_tokens
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units a file, and many runs a corpus."""
    for module in (sources, units):
        monkeypatch.setattr(module, "UNIT_BYTES", 700)
    monkeypatch.setattr(from_tokens, "_RUN_BYTES", 300)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, rng.integers(1, 60))).strip() for _ in range(NUM_DOCUMENTS)]
    return [*made[:5], "", *made[5:], ""]


@pytest.fixture
def bpe_settings(bpe_dir: Path) -> TokenizerSettings:
    return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=bpe_dir)


@pytest.fixture
def sp_settings(sentencepiece_path: Path) -> TokenizerSettings:
    return TokenizerSettings(tokenizer_type="SentencePieceTokenizer", tokenizer_model=sentencepiece_path)
