"""The corpus of examples/quickstart: held-out text must stay out of the pool."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart" / "build_corpus.py"


def build(directory: Path, *more: str) -> dict[str, list[dict[str, str]]]:
    argv = ["--output", str(directory), "--pool-bytes", "400000", "--heldout-bytes", "30000", *more]
    subprocess.run([sys.executable, str(SCRIPT), *argv], check=True, capture_output=True)
    return {
        path.stem: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in directory.glob("*.jsonl")
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    return build(tmp_path_factory.mktemp("corpus"))


def test_held_out_text_shares_neither_files_nor_texts_with_the_pool(corpus: dict[str, list[dict[str, str]]]) -> None:
    pool, heldout = corpus["pool"], corpus["heldout"]
    assert not {document["file"] for document in pool} & {document["file"] for document in heldout}
    texts = [document["text"] for document in pool + heldout]
    assert len(texts) == len(set(texts))
    assert {document["kind"] for document in heldout} == {"prose"}


@pytest.mark.slow
def test_held_out_text_of_several_kinds(tmp_path: Path) -> None:
    documents = build(tmp_path, "--heldout-kinds", "data", "code")
    pool_files = {document["file"] for document in documents.pop("pool")}
    assert documents.keys() == {"heldout_data", "heldout_code"}
    for name, heldout in documents.items():
        assert {f"heldout_{document['kind']}" for document in heldout} == {name}
        assert 25_000 < sum(len(document["text"].encode()) for document in heldout) <= 30_000
        assert not pool_files & {document["file"] for document in heldout}


def test_the_pool_has_its_four_kinds_in_their_shares(corpus: dict[str, list[dict[str, str]]]) -> None:
    sizes: Counter[str] = Counter()
    for document in corpus["pool"]:
        sizes[document["kind"]] += len(document["text"].encode())
    total = sum(sizes.values())
    assert {kind: round(size / total, 2) for kind, size in sizes.items()} == {
        "prose": pytest.approx(0.35, abs=0.02),
        "code": pytest.approx(0.25, abs=0.02),
        "data": pytest.approx(0.20, abs=0.02),
        "noise": pytest.approx(0.20, abs=0.02),
    }


@pytest.mark.slow
def test_the_same_installation_gives_the_same_corpus(corpus: dict[str, list[dict[str, str]]], tmp_path: Path) -> None:
    def digest(documents: list[dict[str, str]]) -> str:
        return hashlib.sha256(json.dumps(documents).encode()).hexdigest()

    again = build(tmp_path)
    assert again.keys() == corpus.keys() == {"pool", "heldout"}
    assert [digest(again[name]) for name in corpus] == [digest(documents) for documents in corpus.values()]
