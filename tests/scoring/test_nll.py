import math

import pytest
import torch
from gloo_ranks import run_ranks
from torch.nn.functional import cross_entropy

from megatron_miniplm.scoring import nll
from megatron_miniplm.scoring.nll import Tile, token_nll, token_nll_and_argmax

NUM_TOKENS, HIDDEN_SIZE, VOCAB_SIZE, PADDED_VOCAB_SIZE = 37, 16, 50, 64
TOLERANCE_NATS = 1e-5


def example(seed: int = 0, padded_rows: float = 1e3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, an output matrix whose padding would dominate any sum that it enters, and targets."""
    generator = torch.Generator().manual_seed(seed)
    hidden_TH = torch.randn(NUM_TOKENS, HIDDEN_SIZE, generator=generator)
    weight_VH = torch.randn(PADDED_VOCAB_SIZE, HIDDEN_SIZE, generator=generator)
    weight_VH[VOCAB_SIZE:] *= padded_rows
    return hidden_TH, weight_VH, torch.randint(VOCAB_SIZE, (NUM_TOKENS,), generator=generator)


def truth(hidden_TH: torch.Tensor, weight_VH: torch.Tensor, target_T: torch.Tensor) -> torch.Tensor:
    """torch's own cross-entropy in float64 over the real rows."""
    return cross_entropy(hidden_TH.double() @ weight_VH[:VOCAB_SIZE].double().t(), target_T, reduction="none")


@pytest.mark.parametrize("tokens", [1, 7, NUM_TOKENS - 1, NUM_TOKENS, NUM_TOKENS + 1])
@pytest.mark.parametrize("rows", [1, 3, VOCAB_SIZE - 1, VOCAB_SIZE, PADDED_VOCAB_SIZE])
def test_equals_cross_entropy_at_any_tile(monkeypatch: pytest.MonkeyPatch, tokens: int, rows: int) -> None:
    monkeypatch.setitem(nll.TILES, "cpu", Tile(tokens, rows))
    hidden_TH, weight_VH, target_T = example()
    nll_T = token_nll(hidden_TH, weight_VH, target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None)
    assert (nll_T.dtype, nll_T.shape) == (torch.float32, (NUM_TOKENS,))
    torch.testing.assert_close(nll_T.double(), truth(hidden_TH, weight_VH, target_T), rtol=1e-6, atol=TOLERANCE_NATS)


def test_the_two_reductions_of_a_tile_are_one() -> None:
    """The one that is compiled for a GPU and the one that works in place."""
    logits_TV = torch.randn(5, 9)
    max_T1, sum_T1 = torch.randn(5, 1), torch.rand(5, 1)
    compiled = nll._reduce_tile(logits_TV, max_T1, sum_T1)
    torch.testing.assert_close(nll._reduce_tile_in_place(logits_TV.clone(), max_T1, sum_T1), compiled)


def test_no_tokens() -> None:
    hidden_TH, weight_VH, target_T = example()
    nll_T = token_nll(hidden_TH[:0], weight_VH, target_T[:0], first_row=0, vocab_size=VOCAB_SIZE, group=None)
    assert (nll_T.dtype, nll_T.shape) == (torch.float32, (0,))


def test_logits_exist_for_a_tile_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tokens and rows there are, no product is larger than the tile."""
    monkeypatch.setitem(nll.TILES, "cpu", Tile(8, 16))
    sizes = []
    original = nll._logits
    monkeypatch.setattr(nll, "_logits", lambda *parts: sizes.append((len(parts[0]), len(parts[1]))) or original(*parts))
    token_nll(*example(), first_row=0, vocab_size=VOCAB_SIZE, group=None)
    assert max(tokens for tokens, _ in sizes) == 8
    assert max(rows for _, rows in sizes) == 16
    assert sum(tokens * rows for tokens, rows in sizes) == NUM_TOKENS * VOCAB_SIZE


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_visible(broken: float) -> None:
    hidden_TH, weight_VH, target_T = example()
    hidden_TH[3, 5] = broken
    nll_T = token_nll(hidden_TH, weight_VH, target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None)
    assert torch.nonzero(~torch.isfinite(nll_T)).flatten().tolist() == [3]


def test_uniform_closed_form() -> None:
    """Zero real rows give every token ln V, however far the vocabulary is padded."""
    hidden_TH, weight_VH, target_T = example()
    weight_VH[:VOCAB_SIZE] = 0
    nll_T = token_nll(hidden_TH, weight_VH, target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None)
    torch.testing.assert_close(nll_T, torch.full((NUM_TOKENS,), math.log(VOCAB_SIZE)))


def test_large_logits_do_not_overflow() -> None:
    hidden_TH, weight_VH, target_T = example()
    nll_T = token_nll(hidden_TH * 1e3, weight_VH, target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None)
    torch.testing.assert_close(
        nll_T.double(), truth(hidden_TH * 1e3, weight_VH, target_T), rtol=1e-5, atol=TOLERANCE_NATS
    )


def test_bfloat16_states_give_float32_scores() -> None:
    hidden_TH, weight_VH, target_T = example()
    nll_T = token_nll(
        hidden_TH.bfloat16(), weight_VH.bfloat16(), target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None
    )
    assert nll_T.dtype == torch.float32
    expected_T = truth(hidden_TH.bfloat16(), weight_VH.bfloat16(), target_T)
    torch.testing.assert_close(nll_T.double(), expected_T, rtol=0.02, atol=0.1)  # logits are rounded to 8 bits


@pytest.mark.parametrize("num_ranks", [2, 4, 16])
def test_the_parts_of_all_ranks_make_the_whole(num_ranks: int) -> None:
    """Of 16 ranks with 4 rows each the last three hold padding alone."""
    hidden_TH, weight_VH, target_T = example()
    rows = PADDED_VOCAB_SIZE // num_ranks
    parts = [
        (
            nll._log_sum_exp(hidden_TH, weight_VH[start : min(start + rows, VOCAB_SIZE)]),
            nll._target_logits(hidden_TH, weight_VH[start : min(start + rows, VOCAB_SIZE)], target_T - start),
        )
        for start in range(0, PADDED_VOCAB_SIZE, rows)
    ]
    log_sums_RT, target_logits_RT = (torch.stack(column) for column in zip(*parts, strict=True))
    assert torch.all((target_logits_RT > -torch.inf).sum(dim=0) == 1), "each target belongs to one rank"
    nll_T = torch.logsumexp(log_sums_RT, dim=0) - target_logits_RT.amax(dim=0)
    torch.testing.assert_close(nll_T.double(), truth(hidden_TH, weight_VH, target_T), rtol=1e-6, atol=TOLERANCE_NATS)


def test_two_ranks_on_gloo_agree_with_one() -> None:
    run_ranks(compare_with_one_rank, 2)


def compare_with_one_rank(rank: int) -> None:
    """Run on each rank: an even split, one whose second rank has mostly padding, one where it has nothing else."""
    for rows in (32, 40, 50):
        hidden_TH, weight_VH, target_T = example(seed=rows)
        weight_VH = torch.nn.functional.pad(weight_VH, (0, 0, 0, 2 * rows - PADDED_VOCAB_SIZE), value=99.0)
        local_VH = weight_VH[rank * rows : (rank + 1) * rows]
        nll_T = token_nll(
            hidden_TH,
            local_VH,
            target_T,
            first_row=rank * rows,
            vocab_size=VOCAB_SIZE,
            group=torch.distributed.group.WORLD,
        )
        torch.testing.assert_close(
            nll_T.double(), truth(hidden_TH, weight_VH, target_T), rtol=1e-6, atol=TOLERANCE_NATS
        )
        ranks_RT = [torch.empty_like(nll_T) for _ in range(2)]
        torch.distributed.all_gather(ranks_RT, nll_T)
        assert torch.equal(*ranks_RT), "both ranks hold the same bits"


@pytest.mark.parametrize("tokens", [1, 7, NUM_TOKENS + 1])
@pytest.mark.parametrize("rows", [1, 3, VOCAB_SIZE - 1, PADDED_VOCAB_SIZE])
def test_argmax_at_any_tile(monkeypatch: pytest.MonkeyPatch, tokens: int, rows: int) -> None:
    """Never a padded row, which would win every time here; the NLLs keep their bits."""
    monkeypatch.setitem(nll.TILES, "cpu", Tile(tokens, rows))
    hidden_TH, weight_VH, target_T = example()
    settings = {"first_row": 0, "vocab_size": VOCAB_SIZE, "group": None}
    nll_T, best_T = token_nll_and_argmax(hidden_TH, weight_VH, target_T, **settings)
    assert torch.equal(best_T, (hidden_TH @ weight_VH[:VOCAB_SIZE].t()).argmax(dim=1))
    assert torch.equal(nll_T, token_nll(hidden_TH, weight_VH, target_T, **settings))


def test_of_equal_logits_the_first_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(nll.TILES, "cpu", Tile(8, 16))
    hidden_TH, weight_VH, target_T = example()
    weight_VH[:VOCAB_SIZE] = 0
    _, best_T = token_nll_and_argmax(hidden_TH, weight_VH, target_T, first_row=0, vocab_size=VOCAB_SIZE, group=None)
    assert best_T.tolist() == [0] * NUM_TOKENS


def test_argmax_of_no_tokens() -> None:
    hidden_TH, weight_VH, target_T = example()
    nll_T, best_T = token_nll_and_argmax(
        hidden_TH[:0], weight_VH, target_T[:0], first_row=0, vocab_size=VOCAB_SIZE, group=None
    )
    assert (nll_T.shape, best_T.shape, best_T.dtype) == ((0,), (0,), torch.int64)


def test_two_ranks_agree_on_the_argmax() -> None:
    run_ranks(compare_argmax_with_one_rank, 2)


def compare_argmax_with_one_rank(rank: int) -> None:
    """Run on each rank: winners on both, a second rank of padding alone, and nothing but ties."""
    for rows, is_tied in ((32, False), (50, False), (32, True)):
        hidden_TH, weight_VH, target_T = example(seed=rows)
        weight_VH = torch.nn.functional.pad(weight_VH, (0, 0, 0, 2 * rows - PADDED_VOCAB_SIZE), value=99.0)
        if is_tied:
            weight_VH[:VOCAB_SIZE] = 1
        settings = {"first_row": rank * rows, "vocab_size": VOCAB_SIZE, "group": torch.distributed.group.WORLD}
        arguments = (hidden_TH, weight_VH[rank * rows : (rank + 1) * rows], target_T)
        nll_T, best_T = token_nll_and_argmax(*arguments, **settings)
        assert torch.equal(best_T, (hidden_TH @ weight_VH[:VOCAB_SIZE].t()).argmax(dim=1))
        assert torch.equal(nll_T, token_nll(*arguments, **settings))
