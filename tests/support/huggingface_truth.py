"""The tiny checkpoint as a transformers model: an independent implementation of what our scores mean."""

from pathlib import Path

import numpy as np
import torch
from megatron_runs import (
    CONTEXT_TOKENS,
    FFN_SIZE,
    HIDDEN_SIZE,
    NORM_EPSILON,
    NUM_GROUPS,
    NUM_HEADS,
    NUM_LAYERS,
    OVERLAP_TOKENS,
    VOCAB_SIZE,
)
from torch.distributed.checkpoint import FileSystemReader, load
from transformers import LlamaConfig, LlamaForCausalLM


def read_checkpoint(iteration_dir: Path) -> dict[str, torch.Tensor]:
    """All tensors of a `torch_dist` checkpoint, read by torch alone; Megatron stacks the layers along axis 0."""
    reader = FileSystemReader(iteration_dir)
    metadata = reader.read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.items()
        if hasattr(entry, "size")
    }
    load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def to_huggingface(weights: dict[str, torch.Tensor], *, swap_gate_and_up: bool = False) -> LlamaForCausalLM:
    """The model in float64, with the real vocabulary only: padded rows have no counterpart here.

    Megatron keeps query, key and value heads of a group together, gate above up in `linear_fc1`, and each norm with the
    linear layer after it.
    """
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=FFN_SIZE,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=NUM_HEADS,
        num_key_value_heads=NUM_GROUPS,
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=NORM_EPSILON,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    head_size = HIDDEN_SIZE // NUM_HEADS
    group_sizes = (NUM_HEADS // NUM_GROUPS * head_size, head_size, head_size)
    state = {
        "model.embed_tokens.weight": weights["embedding.word_embeddings.weight"][:VOCAB_SIZE],
        "model.norm.weight": weights["decoder.final_layernorm.weight"],
    }
    for layer in range(NUM_LAYERS):
        theirs = f"model.layers.{layer}."
        ours = {
            name.removeprefix("decoder.layers."): tensor[layer]
            for name, tensor in weights.items()
            if name.startswith("decoder.layers.")
        }
        qkv = ours["self_attention.linear_qkv.weight"].reshape(NUM_GROUPS, sum(group_sizes), HIDDEN_SIZE)
        for name, part in zip("qkv", qkv.split(group_sizes, dim=1), strict=True):
            state[f"{theirs}self_attn.{name}_proj.weight"] = part.reshape(-1, HIDDEN_SIZE)
        gate, up = ours["mlp.linear_fc1.weight"].chunk(2)
        if swap_gate_and_up:
            gate, up = up, gate
        state |= {
            f"{theirs}self_attn.o_proj.weight": ours["self_attention.linear_proj.weight"],
            f"{theirs}mlp.gate_proj.weight": gate,
            f"{theirs}mlp.up_proj.weight": up,
            f"{theirs}mlp.down_proj.weight": ours["mlp.linear_fc2.weight"],
            f"{theirs}input_layernorm.weight": ours["self_attention.linear_qkv.layer_norm_weight"],
            f"{theirs}post_attention_layernorm.weight": ours["mlp.linear_fc1.layer_norm_weight"],
        }
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    return model.double().eval()


@torch.no_grad()
def nll_sum(model: LlamaForCausalLM, tokens: np.ndarray) -> float:
    """NLL of all tokens but the first in nats, one window at a time: slow and plain.

    A sequence beyond the context is fed in pieces that repeat `OVERLAP_TOKENS`; a repeated token's prediction counts in
    the first piece that has it.
    """
    total, num_counted = 0.0, 0
    start = 0
    while num_counted < len(tokens) - 1:
        window = torch.tensor(tokens[start : start + CONTEXT_TOKENS + 1].astype(np.int64))
        log_probs = model(window[None, :-1]).logits[0].log_softmax(-1)
        nll = -log_probs.gather(1, window[1:, None])[:, 0]
        total += float(nll[num_counted - start :].sum())
        num_counted = start + len(nll)
        start = num_counted - OVERLAP_TOKENS
    return total
