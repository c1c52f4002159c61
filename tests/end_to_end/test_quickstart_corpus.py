"""The corpus of examples/quickstart: held-out text must stay out of the pool."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "quickstart" / "build_corpus.py"


def build(directory: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    argv = ["--output", str(directory), "--pool-bytes", "400000", "--heldout-bytes", "30000"]
    subprocess.run([sys.executable, str(SCRIPT), *argv], check=True, capture_output=True)
    pool, heldout = (
        [json.loads(line) for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("pool", "heldout")
    )
    return pool, heldout


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    return build(tmp_path_factory.mktemp("corpus"))


def test_held_out_text_shares_neither_files_nor_texts_with_the_pool(
    corpus: tuple[list[dict[str, str]], list[dict[str, str]]],
) -> None:
    pool, heldout = corpus
    assert not {document["file"] for document in pool} & {document["file"] for document in heldout}
    texts = [document["text"] for document in pool + heldout]
    assert len(texts) == len(set(texts))
    assert {document["kind"] for document in heldout} == {"prose"}


def test_the_pool_has_its_four_kinds_in_their_shares(
    corpus: tuple[list[dict[str, str]], list[dict[str, str]]],
) -> None:
    sizes: Counter[str] = Counter()
    for document in corpus[0]:
        sizes[document["kind"]] += len(document["text"].encode())
    total = sum(sizes.values())
    assert {kind: round(size / total, 2) for kind, size in sizes.items()} == {
        "prose": pytest.approx(0.35, abs=0.02),
        "code": pytest.approx(0.25, abs=0.02),
        "data": pytest.approx(0.20, abs=0.02),
        "noise": pytest.approx(0.20, abs=0.02),
    }


@pytest.mark.slow
def test_the_same_installation_gives_the_same_corpus(
    corpus: tuple[list[dict[str, str]], list[dict[str, str]]], tmp_path: Path
) -> None:
    def digest(documents: list[dict[str, str]]) -> str:
        return hashlib.sha256(json.dumps(documents).encode()).hexdigest()

    assert [digest(part) for part in build(tmp_path)] == [digest(part) for part in corpus]
