"""Which Megatron is installed, without importing it."""

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.errors import UnsupportedMegatronError

MINIMUM = (0, 18)
BELOW = (0, 20)
REMEDY = 'pip install "megatron-core>=0.18,<0.20"'


@dataclass(frozen=True, kw_only=True)
class MegatronInstallation:
    """What was found.

    Attributes:
        version: of the `megatron-core` distribution; None where there is none.
        has_training: whether `megatron.training` (the training loop) is importable beside `megatron.core`.
    """

    version: str | None
    has_training: bool

    @property
    def release(self) -> tuple[int, int]:
        major, minor = (self.version or "0.0").split(".")[:2]
        return int(major), int(minor)

    def require(self) -> None:
        """Raise `UnsupportedMegatronError`, with the remedy, unless our Megatron programs can run."""
        if self.version is None:
            raise UnsupportedMegatronError(f"megatron-core is not installed: {REMEDY}")
        if not MINIMUM <= self.release < BELOW:
            raise UnsupportedMegatronError(
                f"megatron-core {self.version} is installed, this release supports 0.18 and 0.19: {REMEDY}"
            )
        if not self.has_training:
            raise UnsupportedMegatronError(
                f"megatron-core {self.version} comes without megatron.training (wheels of 0.17 and later hold it; is a "
                f"Megatron-LM checkout in front of it on PYTHONPATH?): {REMEDY}"
            )


def has_dataset_helpers() -> bool:
    """Whether `megatron.core.datasets.helpers_cpp` is compiled; looks for the file, imports nothing."""
    core = importlib.util.find_spec("megatron.core")
    return core is not None and any((Path(core.origin or "").parent / "datasets").glob("helpers_cpp*.so"))


def find_megatron() -> MegatronInstallation:
    try:
        version = importlib.metadata.version("megatron-core")
    except importlib.metadata.PackageNotFoundError:
        return MegatronInstallation(version=None, has_training=False)
    return MegatronInstallation(version=version, has_training=importlib.util.find_spec("megatron.training") is not None)
