"""Conversions that fail, are killed, and are run again: nothing half-written, and the same result."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_models
import pytest
from megatron_runs import REPOSITORY, error_lines, run
from safetensors.torch import load_file
from tokenizers import Tokenizer, models
from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerFast

from megatron_miniplm.artifacts.directories import LOCK

pytestmark = pytest.mark.slow

CONVERT = REPOSITORY / "tools" / "convert_checkpoint.py"
#: Largest file that the program may write where the disk is full in the middle of one.
SMALL_FILE_BYTES = 100 << 10
GENERATION = {"bos_token_id": 3, "eos_token_id": [7, 9], "pad_token_id": 1, "do_sample": True, "temperature": 0.6}


@dataclass(frozen=True, kw_only=True)
class Conversions:
    """There and back, each first without room and over the remains of a killed process.

    Attributes:
        failed: both directions, each with what it left.
    """

    source: Path
    back: Path
    checkpoint: Path
    failed: dict[str, tuple[subprocess.CompletedProcess[str], list[str]]]


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def convert(*flags: str | Path, small_files: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CONVERT), *map(str, flags)]
    return run(command, largest_file_bytes=SMALL_FILE_BYTES if small_files else None)


@pytest.fixture(scope="module")
def conversions(tmp_path_factory: pytest.TempPathFactory) -> Conversions:
    """Four starts of Megatron."""
    root = tmp_path_factory.mktemp("conversions")
    source = root / "source"
    huggingface_models.random_model("llama").save_pretrained(source)
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(101)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="7").save_pretrained(source)
    config = json.loads((source / "config.json").read_text())
    ids = {name: GENERATION[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    (source / "config.json").write_text(json.dumps(config | ids))
    (source / "generation_config.json").write_text(json.dumps(GENERATION))
    (root / "megatron").mkdir()
    (root / "huggingface").mkdir()
    checkpoint, back = root / "megatron" / "ck", root / "huggingface" / "back"
    there = ("--load-hf", source, "--save", checkpoint)
    and_back = ("--load", checkpoint, "--save-hf", back)
    failed = {"there": (convert(*there, small_files=True), files(root / "megatron"))}
    (checkpoint / "release").mkdir(parents=True)
    (checkpoint / "release" / "__7_0.distcp").write_text("of a killed process of more ranks")
    (checkpoint / "latest_checkpointed_iteration.txt").touch()
    done = convert(*there)
    assert done.returncode == 0, done.stderr[-4000:]
    failed["back"] = (convert(*and_back, small_files=True), files(root / "huggingface"))
    (back.parent / f".back.{'0' * 16}.tmp").mkdir()
    done = convert(*and_back)
    assert done.returncode == 0, done.stderr[-4000:]
    return Conversions(source=source, back=back, checkpoint=checkpoint, failed=failed)


@pytest.mark.parametrize("direction", ["there", "back"])
def test_a_failed_write_is_one_line_and_leaves_nothing(conversions: Conversions, direction: str) -> None:
    process, left = conversions.failed[direction]
    assert process.returncode == 2, process.stderr[-2000:]
    (line,) = error_lines(process.stderr)
    assert "cannot be written" in line
    assert "run the same command again" in line
    assert "Traceback" not in process.stderr
    assert left == []


def test_what_killed_processes_left_is_gone(conversions: Conversions) -> None:
    assert files(conversions.checkpoint) == sorted(
        [
            "latest_checkpointed_iteration.txt",
            "release",
            *(f"release/{name}" for name in (".metadata", "__0_0.distcp", "metadata.json")),
        ]
    )
    assert [path.name for path in conversions.back.parent.iterdir()] == ["back"]


def test_the_model_comes_back_with_its_tokens_and_tokenizer(conversions: Conversions) -> None:
    expected = load_file(conversions.source / "model.safetensors")
    found = load_file(conversions.back / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(tensor.equal(expected[name]) for name, tensor in found.items())
    config = AutoConfig.from_pretrained(conversions.back)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (3, [7, 9], 1)
    generation = GenerationConfig.from_pretrained(conversions.back)
    assert (generation.eos_token_id, generation.do_sample, generation.temperature) == ([7, 9], True, 0.6)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (conversions.back / name).read_bytes() == (conversions.source / name).read_bytes()


def test_a_finished_checkpoint_is_not_written_over(conversions: Conversions) -> None:
    (conversions.checkpoint / LOCK).touch()  # of a process that was killed after its last step but one
    process = convert("--load-hf", conversions.source, "--save", conversions.checkpoint)
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert "holds a checkpoint already" in line
    assert not (conversions.checkpoint / LOCK).exists()


def test_a_checkpoint_that_would_run_code_is_not_loaded(conversions: Conversions, tmp_path: Path) -> None:
    checkpoint = tmp_path / "ck"
    shutil.copytree(conversions.checkpoint, checkpoint)
    (checkpoint / "release" / ".metadata").write_bytes(
        b"cposix\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR."
    )
    process = convert("--load", checkpoint, "--save-hf", tmp_path / "hf")
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert "posix.mkdir" in line
    assert not (tmp_path / "ran").exists()
