"""The loss of distillation against torch's own on full logits."""

import pytest
import torch
from gloo_ranks import run_ranks
from torch.nn.functional import kl_div, log_softmax

from megatron_miniplm.training import vocab_parallel_kl as kl_module
from megatron_miniplm.training.vocab_parallel_kl import vocab_parallel_kl

NUM_POSITIONS, BATCH, HIDDEN_SIZE, PADDED_VOCAB_SIZE = 11, 3, 8, 64

#: No padding; some on the last rank; a rank of two that has nothing else.
VOCAB_SIZES = (PADDED_VOCAB_SIZE, 50, 30)


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student logits, teacher hidden states and output matrix, upstream gradient; padding that would dominate."""
    generator = torch.Generator().manual_seed(0)
    logits_SBV = 5 * torch.randn(NUM_POSITIONS, BATCH, PADDED_VOCAB_SIZE, generator=generator)
    hidden_SBH = torch.randn(NUM_POSITIONS, BATCH, HIDDEN_SIZE, generator=generator)
    weight_VH = torch.randn(PADDED_VOCAB_SIZE, HIDDEN_SIZE, generator=generator)
    upstream_SB = torch.randn(NUM_POSITIONS, BATCH, generator=generator)
    return logits_SBV.to(dtype), hidden_SBH.to(dtype), weight_VH.to(dtype), upstream_SB


def truth(vocab_size: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's KL (S, B) and its gradient (S, B, V) in float64, from the same rounded inputs."""
    logits_SBV, hidden_SBH, weight_VH, upstream_SB = example(dtype)
    student_SBV = logits_SBV.double().requires_grad_()
    teacher_SBV = (hidden_SBH @ weight_VH[:vocab_size].t()).double()
    kl_SB = kl_div(
        log_softmax(student_SBV[..., :vocab_size], -1),
        log_softmax(teacher_SBV, -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    kl_SB.backward(upstream_SB.double())
    assert student_SBV.grad is not None
    return kl_SB.detach(), student_SBV.grad


def check_rank(rank: int, num_ranks: int, vocab_size: int, dtype: torch.dtype, tolerance: float) -> None:
    """Compare this rank's columns with the truth."""
    logits_SBV, hidden_SBH, weight_VH, upstream_SB = example(dtype)
    num_columns = PADDED_VOCAB_SIZE // num_ranks
    columns = slice(rank * num_columns, (rank + 1) * num_columns)
    student_SBV = logits_SBV[..., columns].clone().requires_grad_()
    kl_SB = vocab_parallel_kl(
        student_SBV,
        hidden_SBH,
        weight_VH[columns],
        num_real_columns=max(0, min(num_columns, vocab_size - columns.start)),
        group=torch.distributed.group.WORLD if num_ranks > 1 else None,
    )
    kl_SB.backward(upstream_SB)
    assert student_SBV.grad is not None
    assert (kl_SB.dtype, student_SBV.grad.dtype) == (torch.float32, dtype)
    true_kl_SB, true_gradient_SBV = truth(vocab_size, dtype)
    torch.testing.assert_close(kl_SB.double(), true_kl_SB, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(
        student_SBV.grad.double(), true_gradient_SBV[..., columns], rtol=tolerance, atol=tolerance
    )
    assert not student_SBV.grad[..., max(0, vocab_size - columns.start) :].any(), "padding has no gradient"


@pytest.mark.parametrize("chunk_elements", [1, 5 * PADDED_VOCAB_SIZE, 1 << 18])
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_equals_torch_on_full_logits(monkeypatch: pytest.MonkeyPatch, vocab_size: int, chunk_elements: int) -> None:
    monkeypatch.setitem(kl_module.CHUNK_ELEMENTS, "cpu", chunk_elements)
    check_rank(0, 1, vocab_size, torch.float32, 1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_the_gradient_only(dtype: torch.dtype) -> None:
    check_rank(0, 1, 50, dtype, 1e-2)


def test_a_loss_scale_finds_small_probabilities() -> None:
    """1e-8 rounds to 0 in float16."""
    student_SBV = torch.tensor([[[0.0, -18.4]]], dtype=torch.float16, requires_grad=True)
    hidden_SBH, weight_VH = torch.ones(1, 1, 1, dtype=torch.float16), torch.tensor([[0.0], [-30]], dtype=torch.float16)
    kl_SB = vocab_parallel_kl(student_SBV, hidden_SBH, weight_VH, num_real_columns=2, group=None)
    (2.0**20 * kl_SB).sum().backward()
    assert student_SBV.grad is not None
    assert student_SBV.grad[0, 0, 1].item() == pytest.approx(2.0**20 * 1.02e-8, rel=0.05)


def check_two_ranks(rank: int) -> None:
    for vocab_size in VOCAB_SIZES:
        check_rank(rank, 2, vocab_size, torch.float32, 1e-6)


def test_equals_torch_with_the_vocabulary_over_two_ranks() -> None:
    run_ranks(check_two_ranks, 2)


def test_a_model_does_not_differ_from_itself() -> None:
    _, hidden_SBH, weight_VH, _ = example()
    student_SBV = (hidden_SBH @ weight_VH.t()).requires_grad_()
    kl_SB = vocab_parallel_kl(student_SBV, hidden_SBH, weight_VH, num_real_columns=50, group=None)
    kl_SB.sum().backward()
    assert student_SBV.grad is not None
    assert kl_SB.abs().max() < 1e-6
    assert student_SBV.grad.abs().max() < 1e-6


def test_logits_may_be_overwritten_after_the_loss() -> None:
    """As Megatron's cross-entropy does."""
    logits_SBV, hidden_SBH, weight_VH, upstream_SB = example()
    student_SBV = logits_SBV.clone().requires_grad_()
    kl_SB = vocab_parallel_kl(student_SBV, hidden_SBH, weight_VH, num_real_columns=50, group=None)
    student_SBV.data.zero_()
    kl_SB.backward(upstream_SB)
    assert student_SBV.grad is not None
    torch.testing.assert_close(student_SBV.grad.double(), truth(50)[1], rtol=1e-6, atol=1e-6)
