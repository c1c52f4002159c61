"""A small corpus to measure a loss on."""

import json
from pathlib import Path

import pytest
from held_out_texts import DOCUMENTS, DOMAINS

from megatron_miniplm.cli import run_tool
from megatron_miniplm.indexed import IndexedCorpus


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    """Four sequences of 4, 1, 5 and 3 tokens, of which all but the first are scored."""
    lines = [json.dumps({"text": text, "of": domain}) for text, domain in zip(DOCUMENTS, DOMAINS, strict=True)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines) + "\n")
    tokenizer = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100"]
    paths = ["--input", str(tmp_path / "text.jsonl"), "--output-prefix", str(tmp_path / "held")]
    assert run_tool("preprocess-data", [*paths, *tokenizer, "--domain-key", "of"]) == 0
    return IndexedCorpus.open(tmp_path / "held_text_document")
