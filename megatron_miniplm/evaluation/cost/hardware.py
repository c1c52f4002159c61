"""From operations to hours."""

from dataclasses import dataclass
from enum import Enum

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.flops import PEAK_FLOPS


class Work(Enum):
    """What a stage does with a device; the share of the peak that it reaches depends on that."""

    TRAINING = "training"
    SCORING = "scoring"
    TOOLS = "tools"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Devices and what they reach.

    Attributes:
        peak_flops: of one device, in a second.
        training_utilisation, scoring_utilisation: share of the peak that the model's own operations reach (MFU).
    """

    num_devices: int
    peak_flops: float
    training_utilisation: float
    scoring_utilisation: float

    def device_hours(self, flops: float, work: Work) -> float:
        """Of one device; 0 for tools, which need none."""
        if work is Work.TOOLS:
            return 0.0
        utilisation = self.training_utilisation if work is Work.TRAINING else self.scoring_utilisation
        return flops / (self.peak_flops * utilisation) / 3600

    def wall_hours(self, flops: float, work: Work) -> float:
        """Of all devices together."""
        return self.device_hours(flops, work) / self.num_devices


def peak_flops_of(device: str) -> float:
    """Of a device by its name, such as `H100`, in a second.

    Raises:
        InputError: not in `PEAK_FLOPS`.
    """
    found = next((flops for part, flops in PEAK_FLOPS.items() if part in device.upper()), None)
    if found is None:
        raise InputError(f"--gpu {device} is not known, expected one of {', '.join(PEAK_FLOPS)}: or give --peak-flops")
    return found
