"""Megatron's flags of an architecture, and flags that contradict it."""

import re
from pathlib import Path

import pytest

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.huggingface import HuggingFaceModel


def test_flags(saved: Path) -> None:
    flags = " ".join(HuggingFaceModel.open(saved / "mistral-window").megatron_flags())
    assert "--num-query-groups 4 --kv-channels 4 --max-position-embeddings 256" in flags
    assert "--window-size 6,0" in flags, "Megatron does not count the position itself"
    assert "--use-rope-scaling --rope-scaling-factor 32.0" in " ".join(
        HuggingFaceModel.open(saved / "llama-3").megatron_flags()
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-layers", "3"], "--num-layers 3 contradicts"),
        (["--norm-epsilon=1e-5"], "--norm-epsilon 1e-5 contradicts"),
        (["--add-qkv-bias"], "--add-qkv-bias contradicts"),
        (["--use-checkpoint-args"], "--use-checkpoint-args contradicts"),
    ],
)
def test_contradicting_flags(saved: Path, flags: list[str], message: str) -> None:
    model = HuggingFaceModel.open(saved / "llama")
    with pytest.raises(InputError, match=re.escape(message)):
        model.refuse_contradictions(flags)
    model.refuse_contradictions(["--num-layers", "4", "--norm-epsilon", "0.000001", "--seq-length", "9", "--bf16"])
