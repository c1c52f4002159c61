"""The Megatron flags that a machine needs which lacks a GPU, or Transformer Engine; set unless the user gave them.

Each row: the flags that decide the matter (any of them given means hands off), what is added, on which machines, and
why.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_miniplm.runtime.command_line import canonical_flag

#: `local`: a GPU without Transformer Engine, on which Megatron builds its own layers.
Machine = Literal["cpu", "local"]
ANY: tuple[Machine, ...] = ("cpu", "local")


@dataclass(frozen=True)
class DeviceFlag:
    decided_by: tuple[str, ...]
    added: tuple[str, ...]
    reason: str
    machines: tuple[Machine, ...] = ("cpu",)


DEVICE_FLAGS: tuple[DeviceFlag, ...] = (
    DeviceFlag(("--transformer-impl",), ("--transformer-impl", "local"), "the default is Transformer Engine", ANY),
    DeviceFlag(("--distributed-backend",), ("--distributed-backend", "gloo"), "NCCL needs CUDA"),
    DeviceFlag(
        ("--no-gradient-accumulation-fusion",), ("--no-gradient-accumulation-fusion",), "a CUDA extension of Apex", ANY
    ),
    DeviceFlag(("--no-masked-softmax-fusion",), ("--no-masked-softmax-fusion",), "CUDA kernels of no wheel", ANY),
    DeviceFlag(("--no-persist-layer-norm",), ("--no-persist-layer-norm",), "a CUDA kernel of Apex", ANY),
    DeviceFlag(("--no-rope-fusion",), ("--no-rope-fusion",), "a CUDA kernel of Transformer Engine", ANY),
    DeviceFlag(("--no-bias-swiglu-fusion",), ("--no-bias-swiglu-fusion",), "compiled by torch.compile for CUDA"),
    DeviceFlag(("--no-bias-gelu-fusion",), ("--no-bias-gelu-fusion",), "compiled by torch.compile for CUDA"),
    DeviceFlag(("--no-bias-dropout-fusion",), ("--no-bias-dropout-fusion",), "compiled by torch.compile for CUDA"),
    DeviceFlag(
        ("--no-create-attention-mask-in-dataloader", "--reset-attention-mask"),
        ("--no-create-attention-mask-in-dataloader",),
        "the local attention makes its causal mask itself; one of seq-length squared a sample is costly",
    ),
    DeviceFlag(
        ("--use-cpu-initialization",),
        ("--use-cpu-initialization",),
        "draws whole matrices and slices them: one seed gives one model for every TP size",
    ),
    DeviceFlag(("--num-workers",), ("--num-workers", "0"), "data loader processes would take the cores of the model"),
)


def given_flags(argv: Sequence[str]) -> set[str]:
    """The long flags on a command line, without values and by their names: `--lr` for both `--lr 1` and `--lr=1`."""
    return {canonical_flag(argument.split("=", 1)[0]) for argument in argv if argument.startswith("--")}


def with_device_flags(argv: Sequence[str], machine: Machine) -> tuple[list[str], list[str]]:
    """Add the flags that the user did not decide.

    Returns:
        The completed arguments, and what was added.
    """
    given = given_flags(argv)
    wanted = [flag for flag in DEVICE_FLAGS if machine in flag.machines and given.isdisjoint(flag.decided_by)]
    added = [part for flag in wanted for part in flag.added]
    return [*argv, *added], added
