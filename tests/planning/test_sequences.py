"""Lengths as planning has them, against what scoring does."""

import numpy as np

from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.planning.sequences import SequenceLengths
from megatron_miniplm.scoring.rows import cut_windows


def test_windows_are_those_that_scoring_cuts() -> None:
    lengths_N = np.array([0, 1, 2, 64, 65, 66, 113, 114, 500, 500])
    windows = cut_windows(lengths_N, context_tokens=64, overlap_tokens=16)
    planned = SequenceLengths.of(lengths_N).windows(context_tokens=64, overlap_tokens=16)
    shape = ModelShape(num_layers=1, hidden_size=4, ffn_hidden_size=4, num_attention_heads=1, vocab_size=4)
    assert planned.num_tokens == windows.num_inputs_W.sum()
    assert planned.forward_flops(shape) == shape.forward_flops(windows.num_inputs_W.tolist())
