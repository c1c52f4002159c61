"""A stock training script: plainly, launched, and with `plug_in()` as its first lines, is one and the same training."""

import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from huggingface_truth import read_checkpoint
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    DATA_FLAGS,
    PADDED_VOCAB_SIZE,
    TRAINING_FLAGS,
    launcher,
    random_sequences,
    run,
    run_real,
    write_corpus,
)

from megatron_miniplm.mcore.device_flags import with_device_flags
from megatron_miniplm.mcore.versions import find_megatron

pytestmark = pytest.mark.slow

STOCK_SCRIPTS = Path(__file__).parents[1] / "support" / "stock_scripts"
SCRIPT = STOCK_SCRIPTS / ("pretrain_gpt_017.py" if find_megatron().release < (0, 18) else "pretrain_gpt_018.py")
LAUNCH = ["-m", "megatron_miniplm.launch"]
#: Nothing of ours but the CPU emulation, without which Megatron does not start here.
PLAIN = [
    "-c",
    "import runpy, sys; from megatron_miniplm.mcore import program, versions; program.prepare(versions.PLUG_IN); "
    "program.ensure_rendezvous(); sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')",
]
ASYNCHRONOUS_SAVE = ["--async-save", "--use-persistent-ckpt-worker", "--async-strategy", "mcore"]


Run = Callable[[Sequence[str]], subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Trained:
    losses: dict[int, float]
    stdout: str
    checkpoint: Path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("launched")
    write_corpus(directory / "corpus", random_sequences(range(2, 150)))
    return directory


def train(data: Path, name: str, command: Sequence[str | Path], *flags: str, run: Run = run) -> Trained:
    """Train four iterations and save at the second and fourth, into `data/name`; `run_real` in real processes."""
    checkpoint = data / name
    common = [*ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS, "--eval-interval", "1000", "--train-iters", "4"]
    place = ["--data-path", str(data / "corpus"), "--data-cache-path", str(data / "cache"), "--save", str(checkpoint)]
    process = run([*map(str, command), *common, *place, "--save-interval", "2", *flags])
    assert process.returncode == 0, process.stderr[-4000:]
    found = re.findall(r"iteration +(\d+)/.* lm loss: (\S+)", process.stdout)
    return Trained({int(iteration): float(loss) for iteration, loss in found}, process.stdout, checkpoint)


@pytest.fixture(scope="module")
def launched(data: Path) -> Trained:
    """With everything that starts processes: a data worker, asynchronous saves."""
    command = [sys.executable, *LAUNCH, SCRIPT]
    flags = ["--num-workers", "1", "--own-flag", "given", *ASYNCHRONOUS_SAVE]
    return train(data, "launched", command, *flags, run=run_real)


def test_the_script_notices_nothing(launched: Trained) -> None:
    assert list(launched.losses) == [1, 2, 3, 4]
    assert "own flag: given" in launched.stdout
    place = f"file: {SCRIPT}, argv[0]: {SCRIPT}, path[0]: {SCRIPT.parent}, as __main__: True"
    assert place in launched.stdout.splitlines()
    assert f"megatron: {find_megatron().version}" in launched.stdout
    assert launched.stdout.count("with these flags added") == 1


def test_asynchronous_saves_are_written(launched: Trained) -> None:
    """By a spawned process, which imports the main module again."""
    assert launched.stdout.count("scheduled an async checkpoint save") == 2
    assert (launched.checkpoint / "latest_checkpointed_iteration.txt").read_text() == "4"


def test_launched_and_plain_training_are_equal_bit_for_bit(data: Path, launched: Trained) -> None:
    flags, _ = with_device_flags(["--num-workers", "1"], "cpu")
    plain = train(data, "plain", [sys.executable, *PLAIN, SCRIPT], *flags)
    assert "miniplm" not in plain.stdout
    assert plain.losses == launched.losses
    for iteration in ("iter_0000002", "iter_0000004"):
        assert_equal_checkpoints(plain.checkpoint / iteration, launched.checkpoint / iteration)


def test_two_lines_in_a_script_do_the_same(data: Path, launched: Trained) -> None:
    script = data / "with_two_lines.py"
    lines = "from megatron_miniplm.training.plugin import plug_in\n\nplug_in()\n"
    script.write_text(lines + SCRIPT.read_text())
    plugged_in = train(data, "plugged_in", [sys.executable, script], *ASYNCHRONOUS_SAVE, run=run_real)
    assert plugged_in.losses == launched.losses
    assert plugged_in.stdout.count("with these flags added") == 1
    assert re.search(r"miniplm_selection \.+ None", plugged_in.stdout)
    assert_equal_checkpoints(plugged_in.checkpoint / "iter_0000004", launched.checkpoint / "iter_0000004")


def test_a_launched_run_continues_from_its_asynchronous_checkpoint(data: Path, launched: Trained) -> None:
    (data / "resumed").mkdir()
    (data / "resumed" / "latest_checkpointed_iteration.txt").write_text("2")
    (data / "resumed" / "iter_0000002").symlink_to(launched.checkpoint / "iter_0000002")
    resumed = train(data, "resumed", [sys.executable, *LAUNCH, SCRIPT], "--load", str(data / "resumed"))
    assert resumed.losses[3] == launched.losses[3]
    assert_equal_checkpoints(resumed.checkpoint / "iter_0000004", launched.checkpoint / "iter_0000004")


def test_two_ranks_of_torchrun(data: Path, launched: Trained) -> None:
    split = [*("--tensor-model-parallel-size", "2"), *("--make-vocab-size-divisible-by", str(PADDED_VOCAB_SIZE // 2))]
    two = train(data, "two", [*launcher(2), *LAUNCH, SCRIPT], *split, run=run_real)
    assert two.losses == pytest.approx(launched.losses, abs=1e-4)
    assert two.stdout.count("with these flags added") == 1


def test_torchrun_ends_with_our_line_where_the_script_is_missing(tmp_path: Path) -> None:
    process = run_real([*launcher(2), *LAUNCH, str(tmp_path / "absent.py")])
    assert process.returncode != 0
    assert f"error: {tmp_path / 'absent.py'} does not exist" in process.stderr


def assert_equal_checkpoints(one: Path, other: Path) -> None:
    tensors, others = read_checkpoint(one), read_checkpoint(other)
    assert tensors.keys() == others.keys()
    assert any(name.startswith("optimizer.") for name in tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name
