"""Where NaN or infinity comes from: the first layer of a model whose output is not finite."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from megatron.core.utils import unwrap_model


class FaultFinder:
    """While open, looks at what every layer of the given model chunks puts out.

    Attributes:
        first_layer: number of the first layer with an output that is not finite, counted over all pipeline stages from
            1; 0 is the embedding; the number of layers + 1 where no layer of these chunks has one.
    """

    def __init__(self, chunks: Sequence[Any]) -> None:
        models = [unwrap_model(chunk) for chunk in chunks]
        self.first_layer = models[0].config.num_layers + 1
        self._watched = [(layer.layer_number, layer) for model in models for layer in model.decoder.layers]
        self._watched += [(0, model.embedding) for model in models if getattr(model, "pre_process", False)]
        self._hooks: list[Any] = []

    def _look(self, number: int, output: Any) -> None:
        tensors = output if isinstance(output, tuple) else (output,)
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors if isinstance(tensor, torch.Tensor)):
            self.first_layer = min(self.first_layer, number)

    def __enter__(self) -> Self:
        for number, module in self._watched:
            self._hooks.append(
                module.register_forward_hook(lambda _module, _inputs, output, number=number: self._look(number, output))
            )
        return self

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()


def describe_fault(first_layer: int, num_layers: int) -> str:
    """`FaultFinder.first_layer` of a whole model, for a message."""
    if first_layer == 0:
        return "the embedding of its tokens is not finite"
    if first_layer > num_layers:
        return f"the output of all {num_layers} layers is finite, so the output matrix or the last norm is at fault"
    if first_layer == 1:
        return f"the first output that is not finite is that of layer 1 of {num_layers}"
    return (
        f"layers 1 to {first_layer - 1} are finite, the first output that is not is that of layer {first_layer} of "
        f"{num_layers}"
    )
