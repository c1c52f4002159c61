"""Unmodified Megatron on a machine without a GPU: every patch in one table, with the line that needs it.

Megatron-Core asks for `cuda` by name all over its code. Here the name is mapped to the CPU, and the few calls that have
no CPU counterpart (streams, device properties, CUDA generators) get one. Nothing is emulated that Megatron merely
offers: each row of `PATCHES` and each case of `CudaNamesMeanCpu` was removed once, and `megatron.training.pretrain` at
TP2, resumed, with evaluation and a save, then failed, or, for the rows about random numbers, gave other losses. Line
numbers are those of megatron-core 0.19.2 and torch 2.14.

Known limits, all upstream: no sequence parallelism (torch norms refuse it), no resume with
`--use-distributed-optimizer` (needs Apex or Transformer Engine), and the "CUDA" generator is the CPU's.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from megatron_miniplm.mcore.versions import Patch

CPU = torch.device("cpu")
_active: TorchFunctionMode | None = None


class CudaNamesMeanCpu(TorchFunctionMode):
    """Rewrites `cuda` to `cpu` in calls of torch functions.

    - `device=` of factory functions: core/pipeline_parallel/p2p_communication.py:334, training/training.py:1137, ...
    - `Tensor.cuda()`: training/training.py:1818 and forward steps
    - `Tensor.type()`: core/optimizer/optimizer.py:1028 compares it with "torch.cuda.FloatTensor"
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if kwargs and "device" in kwargs:
            kwargs = {**kwargs, "device": _on_cpu(kwargs["device"])}
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **(kwargs or {}))


def _on_cpu(device: Any) -> Any:
    """The CPU for `cuda`, `cuda:1` or a device number; anything else as it is."""
    if device is None:
        return None
    return CPU if isinstance(device, int) or torch.device(device).type == "cuda" else device


class _Stream:
    """A stream on a device that runs one thing after the other: nothing to wait for."""

    device = CPU

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    wait_stream = wait_event = record_event = synchronize = _nothing


@contextlib.contextmanager
def _on_stream(stream: Any) -> Iterator[None]:
    yield


def _cpu_rng_state(original: Any) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: torch.get_rng_state()


def _set_cpu_rng_state(original: Any) -> Callable[..., None]:
    return lambda state, *args, **kwargs: torch.set_rng_state(state)


def _no_op(original: Any) -> Callable[..., None]:
    """A fresh function each time: torch._dynamo keys its tables by function object."""
    return lambda *args, **kwargs: None


def _data_loader_init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "pin_memory": False})

    return init


def _data_loader_iter(original: Callable[..., Any]) -> Callable[..., Any]:
    """A new iterator draws a seed; on a GPU that leaves the device generator, hence dropout, alone."""

    def iterate(self: Any) -> Any:
        state = torch.get_rng_state()
        try:
            return original(self)
        finally:
            torch.set_rng_state(state)

    return iterate


def _preload_copies(original: Callable[..., Any]) -> Any:
    """On a GPU `tensor.to("cpu")` copies. Here it returns the parameter itself, which training goes on to change."""

    @functools.wraps(original)  # sent to the saving process, by its name
    def preload_tensors(write_buckets: Any, *args: Any, **kwargs: Any) -> list[Any]:
        return [
            (file, key, (data, [(item, tensor.clone()) for item, tensor in tensors]))
            for file, key, (data, tensors) in original(write_buckets, *args, **kwargs)
        ]

    return staticmethod(preload_tensors)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda original: value


_DEVICE = SimpleNamespace(name="cpu", major=9, minor=0, total_memory=1 << 34, multi_processor_count=1)

PATCHES: tuple[Patch, ...] = (
    Patch("torch.cuda:is_available", _constant(lambda: True), "training/initialize.py:66, an assertion"),
    Patch(
        "torch.cuda:device_count", _constant(lambda: 1 << 10), "training/initialize.py:270 and 358, any rank is valid"
    ),
    Patch("torch.cuda:set_device", _no_op, "training/initialize.py:282"),
    Patch("torch.cuda:current_device", _constant(lambda: CPU), "core/tensor_parallel/layers.py:305, every parameter"),
    Patch("torch.cuda:synchronize", _no_op, "core/timers.py:152, p2p_communication.py:419"),
    Patch("torch.cuda:get_device_properties", _constant(lambda *device: _DEVICE), "training/utils/common_utils.py:504"),
    Patch("torch.cuda:Stream", _constant(_Stream), "training/training.py:1876, DDP set-up"),
    Patch("torch.cuda:current_stream", _constant(lambda *device: _Stream()), "the same"),
    Patch("torch.cuda:stream", _constant(_on_stream), "the same"),
    Patch("torch.cuda:get_rng_state", _cpu_rng_state, "training/checkpointing.py:417"),
    Patch(
        "megatron.core.tensor_parallel.random:_get_cuda_rng_state",
        _cpu_rng_state,
        "core/tensor_parallel/random.py:318, the RNG tracker",
    ),
    Patch(
        "megatron.core.tensor_parallel.random:_set_cuda_rng_state",
        _set_cpu_rng_state,
        "core/tensor_parallel/random.py:323, the RNG tracker",
    ),
    Patch(
        "megatron.training.initialize:_warmup_jit_function",
        _no_op,
        "training/initialize.py:494: warms kernels that are off here, with random draws that depend on TP",
    ),
    Patch(
        "torch.utils.data:DataLoader.__init__",
        _data_loader_init,
        "training/datasets/data_samplers.py:109: pinned memory needs CUDA",
    ),
    Patch(
        "megatron.core.dist_checkpointing.strategies.filesystem_async:FileSystemWriterAsync.preload_tensors",
        _preload_copies,
        "core/dist_checkpointing/strategies/filesystem_async.py:243: an asynchronous save must not see later steps",
        parameters=("write_buckets",),
    ),
    Patch("torch.utils.data:DataLoader.__iter__", _data_loader_iter, "dropout after a resume, see _data_loader_iter"),
    Patch(
        "torch.optim:Optimizer._accelerator_graph_capture_health_check",
        _no_op,
        "torch/optim/adam.py:222: asks the missing accelerator",
    ),
)


def wanted() -> bool:
    """Whether to emulate: no GPU, or `MINIPLM_DEVICE=cpu`; once active, torch says that it sees one."""
    return is_active() or os.environ.get("MINIPLM_DEVICE") == "cpu" or not torch.cuda.is_available()


def is_active() -> bool:
    return _active is not None


def activate() -> None:
    """Apply every patch, once a process.

    The names are mapped before the first patch imports Megatron: some of its modules ask for the device at import.
    """
    global _active
    if _active is None:
        _active = CudaNamesMeanCpu()
        _active.__enter__()
        for patch in PATCHES:
            patch.apply()
