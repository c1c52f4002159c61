"""Megatron's dataset classes in this process, with flags of our choosing."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from megatron_runs import dataset_config
from refined_runs import ScoredCorpora, write_scored_corpora


@pytest.fixture(scope="session")
def scored(tmp_path_factory: pytest.TempPathFactory) -> ScoredCorpora:
    return write_scored_corpora(tmp_path_factory.mktemp("scored"))


@pytest.fixture
def run_flags(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what the flags of a run would be."""
    from megatron.training import global_vars

    def set_flags(**flags: Any) -> None:
        unset = {"selection": None, "weighting": "none", "ratio_schedule": None, "temperature_schedule": None}
        values = {f"miniplm_{name}": value for name, value in {**unset, **flags}.items() if name in unset}
        others = {name: value for name, value in flags.items() if name not in unset}
        monkeypatch.setattr(global_vars, "_GLOBAL_ARGS", SimpleNamespace(**values, **others))

    return set_flags


Build = Callable[..., Any]


@pytest.fixture
def build(scored: ScoredCorpora, run_flags: Callable[..., None], tmp_path: Path) -> Build:
    """Builds the training set of a blend with Megatron's builder, as a plugged-in run would."""
    from megatron.core.datasets import blended_megatron_dataset_builder as builders
    from megatron.core.datasets.gpt_dataset import GPTDataset

    from megatron_miniplm.training.dataset import refined_class, safely_cached

    class Builder(builders.BlendedMegatronDatasetBuilder):
        def __init__(self, cls: Any, sizes: Any, is_built_on_rank: Any, config: Any) -> None:
            super().__init__(refined_class(cls, config), sizes, is_built_on_rank, config)

        @staticmethod
        def build_generic_dataset(cls: Any, is_built_on_rank: Any, synchronize_ranks: bool, *args: Any) -> Any:
            original = builders.BlendedMegatronDatasetBuilder.build_generic_dataset
            return original(safely_cached(cls), is_built_on_rank, synchronize_ranks, *args)

    def build_datasets(
        num_samples: int | None = 120,
        *,
        cls: Any = GPTDataset,
        blend: Any = None,
        sizes: Any = None,
        config: dict[str, Any] | None = None,
        **flags: Any,
    ) -> Any:
        run_flags(**{**flags, "selection": [str(path) for path in flags.get("selection", [])] or None})
        paths = [str(corpus.prefix) for corpus in scored.corpora]
        settings = {"blend": blend or (paths, [0.6, 0.4]), "path_to_cache": str(tmp_path / "cache"), **(config or {})}
        made = dataset_config(scored.corpora[0].prefix, tmp_path / "cache", **settings)
        datasets = Builder(cls, sizes or [num_samples, 0, 0], lambda: True, made).build()
        return datasets if sizes else datasets[0]

    return build_datasets
