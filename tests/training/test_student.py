"""The student program's own parts, in one process of real Megatron."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from megatron_runs import ARCHITECTURE_FLAGS, DATA_FLAGS, TRAINING_FLAGS, environment, error_lines, run

FLAGS = [*ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS, "--train-iters", "2"]

#: Parses flags as `main` does, and prints the dataset settings and the loss of a literal micro-batch as JSON.
SCRIPT = """
import json, sys
from megatron_miniplm.mcore import program
program.prepare()
import torch
from megatron_miniplm.training import provider, student
args = program.parse()
from megatron.training.global_vars import set_args
set_args(args)
config = provider.dataset_config(args)
args.check_for_nan_in_loss_and_grad = False
losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
loss, num_tokens, report = student.loss_func(torch.tensor([[1, 0, 1], [1, 1, 0]]), losses)
loss.backward()
fields = ("random_seed", "sequence_length", "split", "blend", "path_to_cache", "create_attention_mask",
          "eod_mask_loss", "reset_position_ids", "num_dataset_builder_threads", "mid_level_dataset_surplus")
print("RESULT", json.dumps({
    "config": {name: getattr(config, name) for name in fields},
    "vocab_size": config.tokenizer.vocab_size,
    "loss": [loss.item(), num_tokens.item(), report["lm loss"].tolist(), str(num_tokens.dtype)],
    "requires_grad": report["lm loss"].requires_grad,
    "gradient": losses.grad.tolist(),
}))
"""


@pytest.fixture(scope="module")
def result() -> dict:
    flags = [*FLAGS, "--data-path", "3", "a", "1", "b", "--data-cache-path", "cache", "--seed", "77", "--eod-mask-loss"]
    process = subprocess.run([sys.executable, "-c", SCRIPT, *flags], capture_output=True, text=True, env=environment())
    assert process.returncode == 0, process.stderr[-4000:]
    (line,) = (line for line in process.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def test_the_dataset_config_follows_megatrons_flags(result: dict) -> None:
    assert result["config"] == {
        "random_seed": 77,
        "sequence_length": 64,
        "split": "100,0,0",
        "blend": [["a", "b"], [3.0, 1.0]],
        "path_to_cache": "cache",
        "create_attention_mask": False,
        "eod_mask_loss": True,
        "reset_position_ids": False,
        "num_dataset_builder_threads": 1,
        "mid_level_dataset_surplus": 0.005,
    }
    assert result["vocab_size"] == 100


def test_the_loss_is_the_sum_over_unmasked_tokens(result: dict) -> None:
    assert result["loss"] == [13.0, 4, [13.0, 4.0], "torch.int32"]
    assert result["gradient"] == [[1, 0, 1], [1, 1, 0]]
    assert not result["requires_grad"]


def test_flags_of_megatrons_own_program_are_refused() -> None:
    """Before anything is read: none of the paths exist."""
    process = run([sys.executable, "-m", "megatron_miniplm.pretrain_gpt", *FLAGS, "--data-path", "none", "--fim-data"])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert line == "error: --fim-data: not supported here; use pretrain_gpt.py of a Megatron-LM checkout"
    assert not Path("none").exists()


def test_flags_that_megatron_refuses_are_one_line() -> None:
    flags = [*FLAGS, "--data-path", "none", "--hidden-size", "30"]
    process = run([sys.executable, "-m", "megatron_miniplm.pretrain_gpt", *flags])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert line.startswith("error: Megatron refuses these flags: ")


def test_data_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    flags = [*FLAGS, "--data-path", str(tmp_path / "none")]
    process = run([sys.executable, "-m", "megatron_miniplm.pretrain_gpt", *flags])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert f"cannot be found at the path prefix {tmp_path / 'none'}" in line
