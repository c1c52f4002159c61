import itertools

import pytest
import torch

from megatron_miniplm.baselines.proxy_head import DifferenceHead, add_head, documents_of, squared_error

HIDDEN_SIZE = 8
#: Windows of 3, 1 and 4 tokens, and 2 of padding.
BOUNDARIES = [0, 3, 4, 8, 10]


@pytest.fixture
def head() -> DifferenceHead:
    torch.manual_seed(0)
    head = DifferenceHead(HIDDEN_SIZE, mean=0.25, std=2.0)
    torch.nn.init.normal_(head.linear.weight)
    torch.nn.init.normal_(head.linear.bias)
    return head


def direct(head: DifferenceHead, hidden_SH: torch.Tensor) -> torch.Tensor:
    weight_H, bias = head.linear.weight[0], head.linear.bias[0]
    spans = itertools.pairwise(BOUNDARIES)
    return torch.stack([(sum(hidden_SH[start:stop]) / (stop - start)) @ weight_H + bias for start, stop in spans])


def test_mean_of_each_window_and_its_gradient(head: DifferenceHead) -> None:
    hidden_SH = torch.randn(10, HIDDEN_SIZE, dtype=torch.float64).float().requires_grad_()
    predicted_D, expected_D = head(hidden_SH, BOUNDARIES), direct(head, hidden_SH)
    assert torch.allclose(predicted_D, expected_D, atol=1e-6)
    weight_D = torch.tensor([1.0, -2.0, 3.0, 0.0])
    (gradient,) = torch.autograd.grad(predicted_D @ weight_D, hidden_SH)
    (expected,) = torch.autograd.grad(expected_D @ weight_D, hidden_SH)
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert not gradient[8:].any()


def test_neighbours_in_the_row_change_nothing(head: DifferenceHead) -> None:
    hidden_SH = torch.randn(10, HIDDEN_SIZE)
    alone = head(hidden_SH[4:8], [0, 4])
    assert torch.equal(head(hidden_SH, BOUNDARIES)[2:3], alone)
    hidden_SH[:4] = torch.nan
    assert torch.equal(head(hidden_SH, BOUNDARIES)[2:3], alone)


def test_it_starts_with_the_mean() -> None:
    head = DifferenceHead(HIDDEN_SIZE, mean=0.25, std=2.0)
    predicted_D = head(torch.randn(10, HIDDEN_SIZE), BOUNDARIES)
    assert head.nats(predicted_D).tolist() == [0.25] * 4
    assert head.nats(torch.tensor([1.0, -0.5])).tolist() == [2.25, -0.75]


def test_it_computes_in_float32_in_a_model_of_another_precision(head: DifferenceHead) -> None:
    head.bfloat16()
    hidden_SH = torch.randn(10, HIDDEN_SIZE).bfloat16()
    predicted_D = head(hidden_SH, BOUNDARIES)
    assert predicted_D.dtype == torch.float32
    assert torch.allclose(predicted_D, direct(head.float(), hidden_SH.float()), atol=1e-6)
    assert head.nats(predicted_D).dtype == torch.float64


def test_the_document_of_each_scored_prediction() -> None:
    scored_K = torch.tensor([0, 2, 3, 4, 7])
    assert documents_of(scored_K, BOUNDARIES).tolist() == [0, 0, 1, 2, 2]
    assert documents_of(scored_K, [0, 8]).tolist() == [0] * 5


def test_a_sequence_counts_once_however_many_windows_it_has() -> None:
    """Document 0 is one sequence; 1 and 2 are the windows of another, with 1 and 3 of its 4 scored tokens."""
    predicted_D = torch.tensor([1.0, 2.0, 4.0, 99.0])
    document_K = torch.tensor([0, 0, 1, 2, 2, 2])
    target_K = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    weight_K = torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25, 0.25])
    assert squared_error(predicted_D, document_K, target_K, weight_K).item() == 1 + (1 + 3 * 9) / 4


def test_a_row_of_padding_has_no_error_and_no_gradient() -> None:
    predicted_D = torch.ones(2, requires_grad=True)
    nothing = torch.empty(0)
    error = squared_error(predicted_D, nothing.long(), nothing, nothing)
    error.backward()
    assert error.item() == 0
    assert predicted_D.grad is not None
    assert not predicted_D.grad.any()


def test_the_output_layer_goes(head: DifferenceHead) -> None:
    stage = torch.nn.Module()
    stage.output_layer = torch.nn.Linear(2, 3)
    stage.share_embeddings_and_output_weights = True
    add_head(stage, head)
    assert {name for name, _ in stage.named_parameters()} == {
        "difference_head.linear.weight",
        "difference_head.linear.bias",
    }
    assert stage.share_embeddings_and_output_weights is False
