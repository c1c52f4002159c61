"""Which samples a step consumes."""

from types import SimpleNamespace

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.training.consumed import samples_of_iteration


def run_of(**flags: object) -> SimpleNamespace:
    defaults = {
        "train_iters": 100,
        "global_batch_size": 8,
        "micro_batch_size": 1,
        "data_parallel_size": 1,
        "step_batch_size_schedule": None,
        "seq_length": 64,
        "decrease_batch_size_if_needed": False,
        "dataloader_type": "single",
    }
    return SimpleNamespace(**{**defaults, **flags})


def test_samples_of_iterations() -> None:
    assert samples_of_iteration(run_of(), 1) == range(8)
    assert samples_of_iteration(run_of(), 100) == range(792, 800)


def test_a_growing_batch_by_hand() -> None:
    """8 samples in steps of 2, then 8 in steps of 4, then steps of 8; thresholds are tokens."""
    args = run_of(step_batch_size_schedule=f"0:2 {8 * 64}:4 {16 * 64}:8")
    sizes, first = [], 0
    for iteration in range(1, 12):
        samples = samples_of_iteration(args, iteration)
        assert samples.start == first
        first = samples.stop
        sizes.append(len(samples))
    assert sizes == [2, 2, 2, 2, 4, 4, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("flags", "iteration", "message"),
    [
        ({}, 0, "--iteration 0: this run has iterations from 1 to 100"),
        ({}, 101, "--iteration 101: this run has iterations from 1 to 100"),
        ({"dataloader_type": "cyclic"}, 1, "--dataloader-type cyclic draws samples by the state of a run"),
    ],
)
def test_refusals(flags: dict[str, object], iteration: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        samples_of_iteration(run_of(**flags), iteration)


def test_a_ramp_up_that_this_megatron_ignores(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.17 grows the batch by this flag, later ones take it and do not: the samples of a step depend on it."""
    from megatron.core import num_microbatches_calculator as calculator

    run = run_of(rampup_batch_size=[4, 4, 40])
    if not hasattr(calculator, "RampupBatchsizeNumMicroBatchesCalculator"):
        with pytest.raises(InputError, match=r"--rampup-batch-size: megatron-core .* ignores this flag"):
            samples_of_iteration(run, 3)
        return
    assert samples_of_iteration(run, 3) == range(8, 12)
