"""The Megatron flags that a CPU run needs, set unless the user gave them.

Each row: the flags that decide the matter (any of them given means hands off), what is added, and why.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CpuFlag:
    decided_by: tuple[str, ...]
    added: tuple[str, ...]
    reason: str


CPU_FLAGS: tuple[CpuFlag, ...] = (
    CpuFlag(("--transformer-impl",), ("--transformer-impl", "local"), "Transformer Engine layers need CUDA"),
    CpuFlag(("--distributed-backend",), ("--distributed-backend", "gloo"), "NCCL needs CUDA"),
    CpuFlag(("--no-gradient-accumulation-fusion",), ("--no-gradient-accumulation-fusion",), "a CUDA extension of Apex"),
    CpuFlag(("--no-masked-softmax-fusion",), ("--no-masked-softmax-fusion",), "a CUDA kernel"),
    CpuFlag(("--no-persist-layer-norm",), ("--no-persist-layer-norm",), "a CUDA kernel of Apex"),
    CpuFlag(("--no-rope-fusion",), ("--no-rope-fusion",), "a CUDA kernel of Transformer Engine"),
    CpuFlag(("--no-bias-swiglu-fusion",), ("--no-bias-swiglu-fusion",), "compiled by torch.compile for CUDA"),
    CpuFlag(("--no-bias-gelu-fusion",), ("--no-bias-gelu-fusion",), "compiled by torch.compile for CUDA"),
    CpuFlag(("--no-bias-dropout-fusion",), ("--no-bias-dropout-fusion",), "compiled by torch.compile for CUDA"),
    CpuFlag(
        ("--no-create-attention-mask-in-dataloader", "--reset-attention-mask"),
        ("--no-create-attention-mask-in-dataloader",),
        "the local attention makes its causal mask itself; one of seq-length squared a sample is costly",
    ),
    CpuFlag(
        ("--use-cpu-initialization",),
        ("--use-cpu-initialization",),
        "draws whole matrices and slices them: one seed gives one model for every TP size",
    ),
    CpuFlag(("--num-workers",), ("--num-workers", "0"), "data loader processes would take the cores of the model"),
)


def given_flags(argv: Sequence[str]) -> set[str]:
    """The long flags on a command line, without values: `--lr` for both `--lr 1` and `--lr=1`."""
    return {argument.split("=", 1)[0] for argument in argv if argument.startswith("--")}


def with_cpu_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Add the flags that the user did not decide.

    Returns:
        The completed arguments, and what was added.
    """
    given = given_flags(argv)
    added = [part for flag in CPU_FLAGS if given.isdisjoint(flag.decided_by) for part in flag.added]
    return [*argv, *added], added
