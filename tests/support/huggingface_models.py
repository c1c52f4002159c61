"""Tiny random models of every family, written by transformers: the independent side of every conversion test.

Weights are large and norms and biases random, so that a swapped, dropped or shifted tensor shows in the logits.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

#: No multiple of anything, so that Megatron pads it.
VOCAB_SIZE = 101
MAX_POSITIONS = 256
SEQUENCE_TOKENS = 48
#: Fewer tokens than a sequence has.
WINDOW_TOKENS = 7
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": MAX_POSITIONS,
    "attn_implementation": "eager",
}
#: Of Llama 3.2. With a base of 5e5 and heads of 16 channels, frequencies fall into all three ranges of the formula.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "llama-tied": lambda: LlamaConfig(**_SHAPE, tie_word_embeddings=True, rms_norm_eps=1e-3),
    "llama-3": lambda: LlamaConfig(**_SHAPE, head_dim=16, rope_parameters=LLAMA3_ROPE),
    "llama-linear": lambda: LlamaConfig(
        **_SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
    ),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=None),
    "mistral-window": lambda: MistralConfig(**_SHAPE, sliding_window=WINDOW_TOKENS),
    "qwen2": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=False),
    "qwen2-tied": lambda: Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=16, tie_word_embeddings=True),
    "mixtral": lambda: MixtralConfig(**_SHAPE, num_local_experts=4, num_experts_per_tok=2),
}


def random_model(name: str) -> PreTrainedModel:
    """A model of `CONFIGS`, float32, the same at every call."""
    torch.manual_seed(sum(name.encode()))
    model = AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(std=0.3)
    return model.eval()


def save_all(directory: Path) -> dict[str, PreTrainedModel]:
    """Write every model into `directory/NAME`, two of them in several shards."""
    models = {name: random_model(name) for name in CONFIGS}
    for name, model in models.items():
        size = "60KB" if name in ("llama", "mixtral") else "5GB"
        model.save_pretrained(directory / name, max_shard_size=size)
    return models


def token_ids(seed: int = 0) -> torch.Tensor:
    """Two sequences, (B, S) int64."""
    return torch.randint(0, VOCAB_SIZE, (2, SEQUENCE_TOKENS), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def log_probs(model: PreTrainedModel, tokens_BS: torch.Tensor) -> torch.Tensor:
    """(B, S, V) float32."""
    return model(tokens_BS).logits.float().log_softmax(-1)


#: What decides how a sequence is cut and packed: nothing to predict, short, one window, two, three contexts.
CONTEXT_TOKENS, OVERLAP_TOKENS, ROW_TOKENS = MAX_POSITIONS, MAX_POSITIONS // 4, 1024
SCORED_LENGTHS = (0, 1, 2, 3, 17, 64, 100, 255, 256, 257, 258, 300, 449, 511, 513, 768)


def scored_sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist() for length in SCORED_LENGTHS]


def nll_sums(model: PreTrainedModel, sequences: list[list[int]]) -> list[float]:
    """NLL of all tokens but the first of each sequence in nats, one window at a time: slow and plain.

    A sequence beyond the context is fed in pieces that repeat `OVERLAP_TOKENS`; a repeated token's prediction counts in
    the first piece that has it.
    """
    sums = []
    for sequence in sequences:
        total, num_counted, start = 0.0, 0, 0
        while num_counted < len(sequence) - 1:
            window = torch.tensor(sequence[start : start + CONTEXT_TOKENS + 1])
            nll = -log_probs(model, window[None, :-1])[0].gather(1, window[1:, None])[:, 0]
            total += float(nll[num_counted - start :].double().sum())
            num_counted = start + len(nll)
            start = num_counted - OVERLAP_TOKENS
        sums.append(total)
    return sums
