"""Families, and the architectures that they express."""

from pathlib import Path

import huggingface_models
import pytest

from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.architecture import family_of
from megatron_miniplm.mcore.huggingface.config_json import architecture_of_config
from megatron_miniplm.mcore.huggingface.saving import config_of_architecture


@pytest.mark.parametrize("name", huggingface_models.CONFIGS)
def test_every_family_is_whole_and_comes_back_from_its_architecture(saved: Path, name: str) -> None:
    model = HuggingFaceModel.open(saved / name)
    model.check_tensors()
    assert (model.family, model.vocab_size, model.dtype) == (name.split("-")[0], 101, "float32")
    assert not model.has_tokenizer
    config = config_of_architecture(model.architecture, model.family, "float32")
    assert architecture_of_config(config, Path("config.json")) == model.architecture
    if name != "mistral":
        assert family_of(model.architecture) == model.family
