"""Whether a model fits on a disk, and what to say when a write fails."""

import math
import shutil
from pathlib import Path

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface.architecture import Architecture
from megatron_miniplm.mcore.huggingface.mapping import tensor_shapes

#: Writers of large tensors fail when less than one of their buffers is left.
_FULL_BYTES = 16 << 20
_RETRY = "free some space and run the same command again"


def model_bytes(architecture: Architecture, bytes_per_value: int) -> int:
    """Bytes of the weights, without padding."""
    return bytes_per_value * sum(math.prod(shape) for shape in tensor_shapes(architecture).values())


def require_space(path: Path, num_bytes: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
        InputError: fewer bytes than `num_bytes` are free where `path` is, or will be.
    """
    free = _free_bytes(path)
    if free < num_bytes:
        raise InputError(
            f"{path} cannot be written (no space left: {num_bytes:,} bytes are needed, {free:,} are free): {_RETRY}"
        )


def unwritable(path: Path, reason: str) -> InputError:
    """What a failed write of `path` is to the user.

    Args:
        reason: of the library that wrote; some hide the operating system's.
    """
    free = _free_bytes(path)
    if free < _FULL_BYTES:
        reason = f"no space left, the disk has {free:,} bytes free; {reason}"
    return InputError(f"{path} cannot be written ({reason[:300]}): {_RETRY}")


def _free_bytes(path: Path) -> int:
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(existing).free
