"""Random models of every family, as transformers saves them."""

from pathlib import Path

import huggingface_models
import pytest


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed."""
    directory = tmp_path_factory.mktemp("saved")
    huggingface_models.save_all(directory)
    return directory
