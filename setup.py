"""Packaging of megatron-miniplm; tool settings stand in pyproject.toml, exact CI versions in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "megatron_miniplm" / "__init__.py").read_text())[1]

setup(
    name="megatron-miniplm",
    version=VERSION,
    description="Pre-training distillation by difference sampling (MiniPLM) for Megatron-Core",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=find_packages(include=["megatron_miniplm", "megatron_miniplm.*"]),
    package_data={
        "megatron_miniplm.evaluation.harness": ["tasks/*.yaml", "tasks/*.py"],
        "megatron_miniplm.reports": ["templates/*"],
    },
    python_requires=">=3.12",
    install_requires=[
        "torch>=2.6",
        "megatron-core>=0.18,<0.20",
        "numpy>=2.0",
        "gigatoken>=0.10",
        "jinja2>=3.1",
        "msgspec>=0.19",
        "nltk>=3.9",
        "pyarrow>=18",
        "safetensors>=0.4",
        "sentencepiece>=0.2",
        "tiktoken>=0.8",
        "tokenizers>=0.21",
        "tensorboard>=2.18",
        "tqdm>=4.66",
        # Imported by megatron.training and by dist_checkpointing, and not declared by the megatron-core wheel.
        "omegaconf>=2.3",
        "protobuf>=4",  # sentencepiece reads its models with it
        "psutil>=5.9",
        "transformers>=4.51",
    ],
    extras_require={
        "gpu": ["transformer-engine[pytorch]>=2.8"],
        "eval": ["accelerate>=0.26", "lm-eval>=0.4.13,<0.5", "matplotlib>=3.9", "scipy>=1.14"],
        "dev": ["hypothesis>=6.100", "mypy>=1.15", "pytest>=8.3", "ruff>=0.9"],
    },
    entry_points={"console_scripts": ["miniplm=megatron_miniplm.cli:main"]},
)
