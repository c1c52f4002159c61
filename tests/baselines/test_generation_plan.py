"""Which sequences are continued, in which batches, with which seeds."""

import numpy as np
import pytest

from megatron_miniplm.baselines.generation_plan import (
    GenerationSettings,
    batch_seed,
    batches,
    chosen_sequences,
    is_open,
    prompt_of,
)

EOD = 9


def settings(**values: object) -> GenerationSettings:
    defaults = {
        "prompt_tokens": 4,
        "max_new_tokens": 8,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 0.0,
        "seed": 1,
        "eod_id": EOD,
        "num_sequences": None,
        "random_subset": False,
        "block_sequences": 8,
        "batch_sequences": 2,
    }
    return GenerationSettings(**{**defaults, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize("random", [False, True])
def test_all_sequences_where_no_fewer_are_wanted(random: bool) -> None:
    for wanted in (None, 5, 6):
        assert chosen_sequences(5, wanted, random=random, seed=1).tolist() == [0, 1, 2, 3, 4]


def test_the_first_sequences() -> None:
    assert chosen_sequences(5, 3, random=False, seed=1).tolist() == [0, 1, 2]


def test_a_random_subset_is_ascending_and_of_its_seed() -> None:
    chosen = chosen_sequences(10_000, 1000, random=True, seed=1)
    assert len(np.unique(chosen)) == 1000
    assert (np.diff(chosen) > 0).all()
    assert abs(chosen.mean() - 5000) < 400  # four standard deviations
    assert chosen.tolist() == chosen_sequences(10_000, 1000, random=True, seed=1).tolist()
    assert 50 < len(np.intersect1d(chosen, chosen_sequences(10_000, 1000, random=True, seed=2))) < 150


def test_prompts_are_cut_and_those_that_are_over_stay_as_they_are() -> None:
    prompts = [prompt_of(np.array(tokens), settings()) for tokens in ([1, 2, 3, 4, 5], [1, 2], [1, EOD], [EOD, 1], [])]
    assert [prompt.tolist() for prompt in prompts] == [[1, 2, 3, 4], [1, 2], [1, EOD], [EOD, 1], []]
    assert [is_open(prompt, settings()) for prompt in prompts] == [True, True, False, True, False]
    assert [is_open(prompt, settings(eod_id=None)) for prompt in prompts] == [True, True, True, True, False]


def test_prompts_of_one_length_are_fed_together() -> None:
    prompts = [np.ones(length, np.int64) for length in (4, 1, 0, 4, 2, 4)]
    assert [rows.tolist() for rows in batches(prompts, settings())] == [[1, 4], [0, 3], [5]]
    assert batches([np.zeros(0, np.int64)], settings()) == []


def test_every_batch_has_a_seed_of_its_own() -> None:
    seeds = {batch_seed(seed, sequence) for seed in range(30) for sequence in range(30)}
    assert len(seeds) == 900
    assert all(0 <= seed < 1 << 60 for seed in seeds)
