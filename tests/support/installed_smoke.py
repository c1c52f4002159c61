"""Try an installed package as a user would: text to corpus to selection, by the `miniplm` command beside this Python.

    ENVIRONMENT/bin/python tests/support/installed_smoke.py

Needs neither Megatron nor pytest; the scores are made up. `make dist` runs it on what it has built.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from score_stores import write_scores

import megatron_miniplm
from megatron_miniplm.indexed import IndexedCorpus

REPOSITORY = Path(__file__).parents[2]
NUM_DOCUMENTS = 200


def main() -> None:
    installed = Path(megatron_miniplm.__file__)
    if installed.is_relative_to(REPOSITORY / "megatron_miniplm"):
        sys.exit(f"{installed} is the repository's, not the installed package: unset PYTHONPATH")
    version = miniplm(Path(), "--version").split()
    assert version == ["megatron-miniplm", megatron_miniplm.__version__], version
    with tempfile.TemporaryDirectory() as directory:
        select(Path(directory))
    print(f"{' '.join(version)} in {installed.parent}: text, corpus, selection and their checks work")


def select(directory: Path) -> None:
    """From JSONL to a selection that `inspect --check` calls intact."""
    words = ["model", "teacher", "student", "data", "token", "loss"]
    texts = [" ".join(words[(i * j) % len(words)] for j in range(1, 9)) + f" {i}." for i in range(NUM_DOCUMENTS)]
    (directory / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    miniplm(directory, "train-tokenizer --input text.jsonl --type bpe --vocab-size 300 --output tokenizer")
    tokenizer = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer"
    miniplm(directory, f"preprocess-data --input text.jsonl --output-prefix corpus --append-eod {tokenizer}")
    (prefix,) = (path.with_suffix("") for path in directory.glob("corpus*.idx"))
    corpora = [IndexedCorpus.open(prefix)]
    rng = np.random.default_rng(0)
    for name in ("teacher", "reference"):
        write_scores(directory / name, corpora, rng.random(NUM_DOCUMENTS) * 9, block_sequences=64)
    scores = "--teacher-scores teacher --reference-scores reference"
    miniplm(directory, f"difference-sampling {scores} --ratio 0.5 --output refined")
    miniplm(directory, "inspect refined --check")
    assert "text.jsonl" in miniplm(directory, "lineage refined")


def miniplm(directory: Path, words: str) -> str:
    """Standard output of a command, which must succeed."""
    command = [str(Path(sys.executable).parent / "miniplm"), *words.split()]
    run = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"miniplm {words} ended with {run.returncode}: {run.stderr[-3000:]}")
    return run.stdout


if __name__ == "__main__":
    main()
