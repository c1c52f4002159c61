"""Preprocessing that is killed at random moments, and run again, ends with the bytes of an undisturbed run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from megatron_miniplm.cli import main

pytestmark = pytest.mark.slow

NUM_KILLS = 10
NUM_SHARDS = 3


@pytest.fixture(scope="module")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 MB of documents in random order: some seconds of work in three units."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    choose = random.Random(0)
    texts = list(topics.values())
    with open(path, "w", encoding="utf-8") as stream:
        while stream.tell() < 36_000_000:
            domain, text = choose.choice("ab"), choose.choice(texts)
            stream.write(json.dumps({"text": text, "domain": domain}) + "\n")
    return path


@pytest.fixture(scope="module")
def command(text_path: Path) -> list[str]:
    tokenizer = text_path.parent / "tokenizer"
    flags = ["--vocab-size", "600", "--type", "bpe", "--max-bytes", "200000"]
    assert main(["train-tokenizer", "--input", str(text_path), "--output", str(tokenizer), *flags]) == 0
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer), "--append-eod"]
    flags += ["--num-shards", str(NUM_SHARDS), "--workers", "2", "--domain-key", "domain", "--on-bad-line", "skip"]
    tool = Path(sys.executable).with_name("miniplm")
    return [str(tool), "preprocess-data", "--input", str(text_path), *flags]


def start(command: list[str], directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*command, "--output-prefix", str(directory / "corpus")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def visible_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("[!.]*")} if directory.exists() else {}


@pytest.mark.parametrize("shape", [[], ["--sequence", "chunk", "--chunk-length", "1025"]], ids=["document", "chunk"])
def test_kills_leave_no_trace(command: list[str], shape: list[str], tmp_path: Path) -> None:
    command = [*command, *shape]
    # Paths in sidecars and manifests are relative to the output: both directories lie at one depth.
    started = time.monotonic()
    assert start(command, tmp_path / "undisturbed").wait() == 0
    seconds = time.monotonic() - started
    expected = visible_bytes(tmp_path / "undisturbed")
    assert len(expected) == 5 * NUM_SHARDS

    directory, choose, num_kills = tmp_path / "disturbed", random.Random(1), 0
    while num_kills < NUM_KILLS:
        process = start(command, directory)
        time.sleep(choose.uniform(0.2, 1.0) * seconds)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            num_kills += 1
        process.wait()
        visible = visible_bytes(directory)
        assert visible.items() <= expected.items()
        if len(visible) == len(expected):
            shutil.rmtree(directory)  # finished: the next kill shall meet work again
    assert start(command, directory).wait() == 0
    assert visible_bytes(directory) == expected
    assert list(directory.glob(".*")) == []
