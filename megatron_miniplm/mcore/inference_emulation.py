"""Patches of `megatron.core.inference`: what it needs without a GPU beside `cpu_emulation`, and its progress bar.

Line numbers are those of megatron-core 0.19.2.
"""

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from megatron_miniplm.mcore import cpu_emulation
from megatron_miniplm.mcore.versions import Patch


class _Event:
    """A moment on a device that has no queue: it is over once it is recorded."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_Event") -> float:
        """Milliseconds."""
        return 1e3 * (end._seconds - self._seconds)


def _event(original: Any) -> type[_Event]:
    return _Event


def _is_contiguous(original: Any) -> Callable[[Any], None]:
    def check(tensor: Any) -> None:
        assert tensor is not None and tensor.is_contiguous()  # noqa: PT018 - Megatron's own assertion, less `is_cuda`

    return check


#: The engine would draw a bar of its own for every batch.
_NO_BAR = Patch(
    "megatron.core.inference.engines.static_engine:tqdm",
    lambda original: lambda *args, **kwargs: SimpleNamespace(update=lambda count: None),
    "core/inference/engines/static_engine.py:368",
)

PATCHES: tuple[Patch, ...] = (
    Patch(
        "torch.cuda:Event",
        _event,
        "core/inference/text_generation_controllers/text_generation_controller.py:3534, times of every step",
    ),
    Patch(
        "megatron.core.inference.communication_utils:_is_cuda_contiguous",
        _is_contiguous,
        "core/inference/communication_utils.py:74, logits of the last pipeline stage",
    ),
)


def activate() -> None:
    """Apply what this machine needs.

    Raises:
        UnsupportedMegatronError: what is patched is not there.
    """
    for patch in (_NO_BAR, *(PATCHES if cpu_emulation.is_active() else ())):
        patch.apply()
