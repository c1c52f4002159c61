"""The formulas against the operations that real Megatron executes, as torch counts them."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    CONTEXT_TOKENS,
    DATA_FLAGS,
    OVERLAP_TOKENS,
    REPOSITORY,
    TRAINING_FLAGS,
    VOCAB_SIZE,
    TinyRun,
    run,
)

from megatron_miniplm.planning.sequences import SequenceLengths
from megatron_miniplm.planning.shapes import model_shape

GLOBAL_BATCH_ROWS = 4


def executed_flops(directory: Path, program: str, *flags: str) -> list[float]:
    """What benchmarks/executed_flops.py counts."""
    driver, found = REPOSITORY / "benchmarks" / "executed_flops.py", directory / f"{program}.json"
    process = run([sys.executable, str(driver), "count", str(found), program, *flags])
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(found.read_text())["flops"]


@pytest.mark.slow
def test_training_steps(tiny: TinyRun, tmp_path: Path) -> None:
    data = ["--data-path", str(tiny.directory / "first"), "--data-cache-path", str(tmp_path / "cache")]
    flags = [*ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS, "--train-iters", "2", *data]
    executed = executed_flops(tmp_path, "pretrain", *flags)
    shape = model_shape(str(tiny.checkpoint))
    tokens = GLOBAL_BATCH_ROWS * CONTEXT_TOKENS
    planned = tokens * shape.training_flops_per_token(CONTEXT_TOKENS)
    assert planned == pytest.approx(executed[0], rel=0.15)
    # Without a fused kernel, attention multiplies the half above the diagonal, too; with that the count is exact.
    pairs_above = CONTEXT_TOKENS * (CONTEXT_TOKENS - 1) / 2
    above = 3 * GLOBAL_BATCH_ROWS * 4 * shape.num_layers * shape.attention_size * pairs_above
    assert executed == [planned + above] * 2


@pytest.mark.slow
def test_scoring(tiny: TinyRun, tmp_path: Path) -> None:
    corpus = ["--corpus", *map(str, tiny.prefixes), "--scores", str(tmp_path / "scores")]
    flags = ["--load", str(tiny.checkpoint), "--use-checkpoint-args", *DATA_FLAGS, "--micro-batch-size", "8", *corpus]
    (executed,) = executed_flops(tmp_path, "score-corpus", *flags)
    lengths_N = np.concatenate([corpus.lengths_N for corpus in tiny.corpora])
    windows = SequenceLengths.of(lengths_N).windows(context_tokens=CONTEXT_TOKENS, overlap_tokens=OVERLAP_TOKENS)
    padding = 2 * 32 * (128 - VOCAB_SIZE)  # rows of the output matrix that scoring leaves out
    shape = model_shape(str(tiny.checkpoint))
    planned = windows.forward_flops(shape) - windows.num_tokens * padding
    assert planned == pytest.approx(executed, rel=0.15)
