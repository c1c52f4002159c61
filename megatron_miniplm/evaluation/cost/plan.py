"""All of a plan at once: the road, the same road without a proxy, and the other methods."""

from dataclasses import dataclass, replace

from megatron_miniplm.evaluation.cost.comparison import Method, compare_methods
from megatron_miniplm.evaluation.cost.hardware import Hardware
from megatron_miniplm.evaluation.cost.road import Models, Road, RoadSettings, plan_road


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is asked, and what comes out.

    Attributes:
        road: as asked.
        road_without_proxy: the same where all is scored; equal to `road` where no proxy was asked for.
        methods: difference sampling, then the others.
        cached_bytes_per_token: that cached logits are taken to need.
    """

    models: Models
    settings: RoadSettings
    hardware: Hardware
    road: Road
    road_without_proxy: Road
    methods: tuple[Method, ...]
    cached_bytes_per_token: float


def make_plan(models: Models, settings: RoadSettings, hardware: Hardware, *, cached_bytes_per_token: float) -> Plan:
    """Compute a plan; see `plan_road` and `compare_methods`."""
    road = plan_road(models, settings)
    return Plan(
        models=models,
        settings=settings,
        hardware=hardware,
        road=road,
        road_without_proxy=plan_road(replace(models, proxy=None), replace(settings, sample_fraction=1.0)),
        methods=compare_methods(models, settings, road, cached_bytes_per_token=cached_bytes_per_token),
        cached_bytes_per_token=cached_bytes_per_token,
    )
