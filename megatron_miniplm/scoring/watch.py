"""What a running job shows: progress with tokens/s, ETA, mean NLL and MFU, and the same as TensorBoard scalars.

Rates and the mean are those of all jobs that share the store: rates from the blocks that appear, the mean from some of
them, because a hundred jobs must not read a hundred times what is written once. Of the blocks that this replica works
on, the rows count that it has fed to the model, so that progress is seen before the first block is finished.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from megatron.core.utils import unwrap_model

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.runtime.progress import LINE_INTERVAL_SECONDS, Progress


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


logger = logging.getLogger(__name__)

#: Listing a store of a million blocks takes a second: looking is given at most this part of the time.
LOOKING_FRACTION = 0.02
#: Of the blocks that have appeared since the last look so many are read, for the mean.
MAX_READ_BLOCKS = 32


class Watch:
    """Shows the progress of a store; use as a context manager on the ranks that show something.

    Args:
        store: the store that fills.
        tokens_of_missing: tokens of each block that is missing at the start.
        visible: whether to print.
        tensorboard: Megatron's writer, None on ranks that have none.
        flops_per_second: of this rank's device at most, None where unknown.
    """

    def __init__(
        self,
        store: ScoreStore,
        tokens_of_missing: Mapping[int, int],
        *,
        visible: bool,
        tensorboard: Any,
        peak_flops: float | None,
    ) -> None:
        self._store = store
        self._tokens = tokens_of_missing
        self._left = dict(tokens_of_missing)
        self._own: tuple[int, ...] = ()  # blocks of the pass that this replica is in
        self._fed_before = self._num_fed = 0  # by this replica before that pass, and until now
        self._tensorboard = tensorboard
        self._peak_flops = peak_flops
        self._progress = Progress(sum(self._left.values()), " tokens", visible=visible)
        self._is_used = visible or tensorboard is not None
        self._last_look = time.monotonic()
        self._interval = LINE_INTERVAL_SECONDS / 2
        self._nll, self._num_tokens, self._num_published = 0.0, 0, 0
        self._flops_at_last_look = 0.0

    def begin(self, blocks: Sequence[int]) -> None:
        """This replica feeds these blocks from now on; those before are finished, or about to be."""
        self._own, self._fed_before = tuple(blocks), self._num_fed

    def tick(self, num_flops: float, num_fed_tokens: int = 0) -> None:
        """Look at the store if it is time to; cheap enough for every row.

        It never raises: it is called in the middle of a pass, and a rank that leaves that leaves the others waiting.

        Args:
            num_flops: what this rank's share of the model has computed since the start.
            num_fed_tokens: that this replica has fed to it since the start.
        """
        self._num_fed = num_fed_tokens
        if self._is_used and time.monotonic() - self._last_look >= self._interval:
            self.look(num_flops, num_fed_tokens)

    def look(self, num_flops: float, num_fed_tokens: int = 0) -> None:
        """See which blocks have appeared and show where the job stands.

        A block that cannot be read is named and left to `ScoreStore.finish`, which refuses it.
        """
        now = time.monotonic()
        self._num_fed = num_fed_tokens
        num_published, nll, num_tokens = 0, 0.0, 0
        for position, block in enumerate(self._appeared()):
            num_published += self._left.pop(block)
            if position >= MAX_READ_BLOCKS:
                continue
            try:
                scores = self._store.read_block(block)
            except (MiniPLMError, OSError) as error:
                logger.warning("%s", error)
                continue
            scored = scores["num_tokens"] > 0
            nll += float(scores["nll"][scored].sum(dtype="f8"))
            num_tokens += int(scores["num_tokens"][scored].sum(dtype="i8"))
        self._nll, self._num_tokens = self._nll + nll, self._num_tokens + num_tokens
        self._num_published += num_published
        num_new = max(0, self._num_published + self._num_in_flight() - self._progress.done)
        seconds = max(now - self._last_look, 1e-9)
        utilisation = self._utilisation(num_flops, seconds)
        self._progress.advance(num_new, note=self._note(utilisation))
        if self._tensorboard is not None and num_tokens:
            scalars = {
                "tokens per second": num_new / seconds,
                f"mean {self._store.quantity} (nats)": nll / num_tokens,
                "MFU": utilisation,
            }
            for name, value in scalars.items():
                if value is not None:
                    self._tensorboard.add_scalar(f"scoring/{name}", value, self._num_published)
        self._flops_at_last_look = num_flops
        self._interval = max(self._interval, (time.monotonic() - now) / LOOKING_FRACTION)
        self._last_look = time.monotonic()

    def _num_in_flight(self) -> int:
        """Tokens that were fed of blocks that are not published yet; windows that overlap count once at the most."""
        num_left = sum(self._left.get(block, 0) for block in self._own)
        num_published = sum(self._tokens.get(block, 0) for block in self._own) - num_left
        return min(max(0, self._num_fed - self._fed_before - num_published), num_left)

    def _appeared(self) -> list[int]:
        """Blocks of ours that are published by now; none where the directory cannot be listed just now."""
        try:
            missing = set(self._store.missing_blocks())
        except OSError:
            return []
        return [block for block in self._left if block not in missing]

    def _utilisation(self, num_flops: float, seconds: float) -> float | None:
        if self._peak_flops is None:
            return None
        return (num_flops - self._flops_at_last_look) / seconds / self._peak_flops

    def _note(self, utilisation: float | None) -> str:
        parts = [f"mean {self._store.quantity} {self._nll / self._num_tokens:.4f}"] if self._num_tokens else []
        parts += [f"MFU {utilisation:.1%}"] if utilisation is not None else []
        return ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.__exit__(*error)
