"""From the hidden states of a packed row to predicted differences.

Axes: S tokens of a row, D its documents (windows, then padding), W windows, H hidden size, K scored predictions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear


class DifferenceHead(torch.nn.Module):
    """Mean of a window's final hidden states -> one number, computed in float32 whatever the model's precision.

    It starts at zero: before the first step every prediction is the mean of the training differences. A window stands
    for its sequence; a sequence longer than the context has several, which count by their scored tokens.

    Attributes:
        linear: hidden size -> 1, the same on all tensor-parallel ranks. Kept in the model's precision, with Megatron's
            float32 copy in the optimizer: a checkpoint of Megatron's bf16 optimizer has no place for a parameter in
            float32 (core/optimizer/optimizer.py, `Float16OptimizerWithFloat16Params.sharded_state_dict`).
        mean, std: nats a token; undo the standardisation of the targets.
    """

    def __init__(self, hidden_size: int, *, mean: float, std: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(hidden_size, 1)
        torch.nn.init.zeros_(self.linear.weight)
        torch.nn.init.zeros_(self.linear.bias)
        self.mean, self.std = mean, std

    def forward(self, hidden_SH: torch.Tensor, boundaries: Sequence[int]) -> torch.Tensor:
        """Standardised difference of each document of a row, (D,) float32.

        Args:
            hidden_SH: final hidden states of the row.
            boundaries: starts of the documents, then S.
        """
        boundaries_D = torch.tensor(boundaries, dtype=torch.int64).to(hidden_SH.device, non_blocking=True)
        # One sum a document in a fixed order: on a GPU `index_add` would add in any.
        mean_DH = torch.segment_reduce(hidden_SH.float(), "mean", lengths=boundaries_D.diff(), axis=0, unsafe=True)
        return linear(mean_DH, self.linear.weight.float(), self.linear.bias.float()).squeeze(1)

    def nats(self, standardised: torch.Tensor) -> torch.Tensor:
        """Nats a token of standardised differences, float64."""
        return standardised.double() * self.std + self.mean


def documents_of(scored_K: torch.Tensor, boundaries: Sequence[int]) -> torch.Tensor:
    """The document of each scored prediction, (K,) int64, on its device."""
    starts = torch.tensor(boundaries[1:-1], dtype=torch.int64).to(scored_K.device, non_blocking=True)
    return torch.bucketize(scored_K, starts, right=True)


def squared_error(
    predicted_D: torch.Tensor, document_K: torch.Tensor, target_K: torch.Tensor, weight_K: torch.Tensor
) -> torch.Tensor:
    """Sum of weighted squared errors of a row, a scalar with gradient.

    Args:
        predicted_D: of each document.
        document_K: of each scored prediction.
        target_K: standardised difference of its sequence.
        weight_K: 1 / scored tokens of its sequence, so that the windows of a sequence count as one sequence.
    """
    return (weight_K * (predicted_D[document_K] - target_K) ** 2).sum()


def add_head(model: Any, head: DifferenceHead | None) -> None:
    """Turn one stage of a loaded GPT or hybrid model into one of a proxy, in place.

    The output layer goes, and with it its tie to the embedding: parameters without a gradient would be decayed, and the
    first and last stage would add up gradients that only the first one has.

    Args:
        model: unwrapped, after `mcore.models.take_output_weight` on the last stage.
        head: on the last stage, None elsewhere.
    """
    model.share_embeddings_and_output_weights = False
    if head is not None:
        model.output_layer = None
        model.difference_head = head
