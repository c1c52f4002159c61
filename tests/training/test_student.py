"""The student program's own parts, in one process of real Megatron."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from megatron.training.datasets import data_samplers
from megatron_runs import ARCHITECTURE_FLAGS, DATA_FLAGS, TRAINING_FLAGS, error_lines, run

from megatron_miniplm.training.student import batch_size, validate_in_micro_batches

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
    process = run([sys.executable, "-c", SCRIPT, *flags])
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_data_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    flags = [*FLAGS, "--data-path", str(tmp_path / "none")]
    process = run([sys.executable, "-m", "megatron_miniplm.pretrain_gpt", *flags])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert f"cannot be found at the path prefix {tmp_path / 'none'}" in line


ORIGINAL = data_samplers.MegatronFullValidationSampler


@pytest.fixture
def args(monkeypatch: pytest.MonkeyPatch) -> Namespace:
    monkeypatch.setattr(data_samplers, "MegatronFullValidationSampler", ORIGINAL)
    return Namespace(
        full_validation=True, tensor_model_parallel_size=1, pipeline_model_parallel_size=1, eval_micro_batch_size=4
    )


def batches_of(num_samples: int, rank: int, num_ranks: int) -> list[list[int]]:
    sampler = data_samplers.MegatronFullValidationSampler(num_samples, rank, num_ranks)
    batches = list(sampler)
    assert len(sampler) == len(batches)
    assert list(sampler) == batches, "each evaluation reads the set again"
    return batches


def test_one_rank_reads_whole_micro_batches_and_the_rest(args: Namespace) -> None:
    assert batches_of(10, 0, 1) == [[sample] for sample in range(10)]
    validate_in_micro_batches(args)
    assert batches_of(10, 0, 1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_samples", range(4, 40))
def test_ranks_share_the_samples_and_have_equally_many_batches(
    args: Namespace, num_samples: int, num_ranks: int
) -> None:
    validate_in_micro_batches(args)
    of_ranks = [batches_of(num_samples, rank, num_ranks) for rank in range(num_ranks)]
    assert sorted(sample for batches in of_ranks for batch in batches for sample in batch) == list(range(num_samples))
    size = batch_size(num_samples, num_ranks=num_ranks, at_most=4)
    assert max(len(batch) for batches in of_ranks for batch in batches) <= size
    if size > 1:
        assert len({len(batches) for batches in of_ranks}) == 1, "a rank would start over and count samples twice"


@pytest.mark.parametrize(
    ("num_samples", "num_ranks", "size"), [(16, 2, 4), (17, 2, 3), (24, 2, 4), (5, 2, 4), (1, 2, 1)]
)
def test_the_size_leaves_no_rank_short_of_a_batch(num_samples: int, num_ranks: int, size: int) -> None:
    """17 samples are 9 and 8: batches of 4 would be three and two, batches of 3 are three and three."""
    found = batch_size(num_samples, num_ranks=num_ranks, at_most=4)
    assert found == size


@pytest.mark.parametrize("parallel", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
def test_ranks_that_expect_whole_micro_batches_are_left_alone(args: Namespace, parallel: str) -> None:
    setattr(args, parallel, 2)
    validate_in_micro_batches(args)
    assert data_samplers.MegatronFullValidationSampler is ORIGINAL
