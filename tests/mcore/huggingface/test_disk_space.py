"""What is said before and after a disk is full."""

import shutil
from pathlib import Path

import huggingface_models
import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.disk_space import model_bytes, require_space, unwritable


def test_the_bytes_of_a_model_are_those_of_its_parameters(tmp_path: Path) -> None:
    for name in ("llama-tied", "mixtral", "qwen3"):
        model = huggingface_models.random_model(name)
        model.save_pretrained(tmp_path / name)
        architecture = HuggingFaceModel.open(tmp_path / name).architecture
        assert model_bytes(architecture, 4) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_what_cannot_fit_is_refused_before_it_is_written(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    require_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(InputError, match=r"not/yet cannot be written \(no space left"):
        require_space(tmp_path / "not" / "yet", free * 2)


def test_the_librarys_reason_is_kept(tmp_path: Path) -> None:
    message = str(unwritable(tmp_path, "I/O error: File too large"))
    assert message.startswith(f"{tmp_path} cannot be written")
    assert "File too large" in message
