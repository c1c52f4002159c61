"""Selections to report on: random scores over bare corpora, and a hostile crawl with sidecars."""

import json
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from reported_corpora import ATTACKS, HOSTILE_SOURCE, Scored, made_scores
from score_stores import write_scores

from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection import scored_corpus


@pytest.fixture
def scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scored:
    """Three prefixes, one of them empty, without sidecars; 3,000 sequences in pieces of 97."""
    monkeypatch.setattr(scored_corpus, "CHUNK_SEQUENCES", 97)
    rng = np.random.default_rng(11)
    lengths = [rng.geometric(0.02, 1800) - 1, np.zeros(0, np.int64), rng.geometric(0.05, 1200)]
    names = ("web", "none", "books")
    corpora = [
        write_corpus(tmp_path / "data" / name, (np.full(length, 7) for length in part.tolist()))
        for name, part in zip(names, lengths, strict=True)
    ]
    length_N = np.concatenate(lengths)
    teacher_N, reference_N = made_scores(length_N)
    for name, nll_N in (("teacher", teacher_N), ("reference", reference_N)):
        write_scores(tmp_path / name, corpora, nll_N.tolist(), block_sequences=64)
    return Scored(directory=tmp_path, corpora=corpora, teacher_N=teacher_N, reference_N=reference_N, length_N=length_N)


@pytest.fixture(scope="session")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Two prefixes with sidecars and one without; ids, domains, a source name and every fifth text are hostile."""
    directory = tmp_path_factory.mktemp("crawl")
    rng = np.random.default_rng(5)
    sources = (directory / HOSTILE_SOURCE, directory / "plain.jsonl")
    for number, source in enumerate(sources):
        lines = []
        for document in range(60):
            attack = ATTACKS[document % len(ATTACKS)]
            words = " ".join(f"word{word}" for word in rng.integers(0, 50, int(rng.integers(3, 40))))
            labels = {"id": f"{attack} {document}", "domain": attack if document % 3 else f"domain {number}"}
            lines.append(json.dumps({"text": f"{attack} {words} & more", **labels}) + "\n")
        source.write_text("".join(lines))
    tokenizer = ["--vocab-size", "300", "--type", "bpe", "--output", str(directory / "bpe")]
    assert main(["train-tokenizer", "--input", str(sources[1]), *tokenizer]) == 0
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(directory / "bpe"), "--append-eod"]
    flags += ["--id-key", "id", "--domain-key", "domain"]
    corpora = []
    for name, source in zip(("first", "second"), sources, strict=True):
        prefix = directory / "data" / name
        assert main(["preprocess-data", "--input", str(source), "--output-prefix", str(prefix), *flags]) == 0
        corpora.append(IndexedCorpus.open(prefix.with_name(f"{name}_text_document")))
    corpora.append(write_corpus(directory / "data" / "bare", [rng.integers(0, 290, 20) for _ in range(30)]))
    length_N = np.concatenate([corpus.lengths_N for corpus in corpora])
    teacher_N, reference_N = made_scores(length_N)
    for name, nll_N in (("teacher", teacher_N), ("reference", reference_N)):
        write_scores(directory / name, corpora, nll_N.tolist(), block_sequences=64)
    return Scored(directory=directory, corpora=corpora, teacher_N=teacher_N, reference_N=reference_N, length_N=length_N)
