"""Which sequences are prompts, how they meet the model, and which numbers their draws come from; no file, no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.artifacts.fingerprint import digest_values
from megatron_miniplm.runtime.hashing import uniforms

_SUBSET_STREAM = 0x73756273  # keeps the subset apart from what else is drawn with the user's seed
_SEED_HEX = 15  # digits of a digest that torch's generators take as a seed: 60 bits


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What decides the tokens, beside corpus and model.

    Attributes:
        prompt_tokens: first tokens of a sequence that are its prompt; a shorter sequence is one as a whole.
        max_new_tokens: of a continuation.
        temperature, top_k, top_p: of Megatron's sampler; 0 turns the last two off.
        seed: of all draws.
        eod_id: ends a continuation; None: all have `max_new_tokens`.
        num_sequences: how many are taken; None: all.
        random_subset: whether these are drawn instead of the first.
        block_sequences: sequences of a block.
        batch_sequences: prompts that the model is fed together.
    """

    prompt_tokens: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    eod_id: int | None
    num_sequences: int | None
    random_subset: bool
    block_sequences: int
    batch_sequences: int

    @property
    def context_tokens(self) -> int:
        """The longest prompt with the longest continuation."""
        return self.prompt_tokens + self.max_new_tokens


def chosen_sequences(num_sequences: int, num_wanted: int | None, *, random: bool, seed: int) -> np.ndarray:
    """Global ids of the sequences that are continued, ascending, int64.

    Args:
        num_sequences: of the corpus.
        num_wanted: None, or more than there are: all.
        random: a random part, which depends on the seed and the size of the corpus alone, instead of the first ones.
    """
    if num_wanted is None or num_wanted >= num_sequences:
        return np.arange(num_sequences)
    if not random:
        return np.arange(num_wanted)
    drawn_N = uniforms(np.arange(num_sequences), seed, _SUBSET_STREAM)
    return np.sort(np.argpartition(drawn_N, num_wanted - 1)[:num_wanted])


def prompt_of(tokens_T: np.ndarray, settings: GenerationSettings) -> np.ndarray:
    """The prompt that a sequence gives."""
    return tokens_T[: settings.prompt_tokens]


def is_open(prompt_T: np.ndarray, settings: GenerationSettings) -> bool:
    """Whether a prompt is to be continued: not one of no tokens, nor one that ends with its document."""
    return len(prompt_T) > 0 and (settings.eod_id is None or int(prompt_T[-1]) != settings.eod_id)


def batches(prompts: Sequence[np.ndarray], settings: GenerationSettings) -> list[np.ndarray]:
    """Positions of the prompts that are fed together; a function of the block alone, not of who computes it.

    Those of one length go together: Megatron feeds what is longer than the shortest of a batch token by token.
    """
    open_P = np.array([row for row, prompt in enumerate(prompts) if is_open(prompt, settings)], np.int64)
    lengths_P = np.array([len(prompts[row]) for row in open_P], np.int64)
    ordered_P = open_P[np.argsort(lengths_P, kind="stable")]
    return [
        ordered_P[start : start + settings.batch_sequences]
        for start in range(0, len(ordered_P), settings.batch_sequences)
    ]


def batch_seed(seed: int, sequence: int) -> int:
    """Seed of the draws of a batch, from the user's and the global id of its first sequence."""
    return int(digest_values("generate-corpus", seed, sequence)[:_SEED_HEX], 16)
