"""Full validation reads every sample once, in micro-batches."""

from argparse import Namespace

import pytest
from megatron.training.datasets import data_samplers

from megatron_miniplm.training.validation import batch_size, validate_in_micro_batches

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
