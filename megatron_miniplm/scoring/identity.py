"""What is scored with what: everything that decides a score."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.score_blocks import default_block_sequences
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity, identity_of_inputs
from megatron_miniplm.runtime.hashing import uniforms
from megatron_miniplm.scoring.rows import ScoringRules


def identity_of(
    args: argparse.Namespace,
    prefixes: Sequence[Path],
    model: ModelIdentity,
    tokenizer: TokenizerIdentity,
    rules: ScoringRules,
) -> dict[str, Any]:
    """The identity that a score store is made with, once all that it names was looked at.

    The layout (TP, PP, DP, EP) and the micro-batch size are not part of it: they change no score beyond rounding.

    Raises:
        InputError: a corpus that cannot be scored with this model.
        FingerprintMismatchError: a corpus that was made with another tokenizer.
    """
    return {
        **identity_of_inputs(args, prefixes, model, tokenizer),
        "settings": {
            "block_sequences": args.block_sequences or _block_sequences(args, prefixes, rules),
            **asdict(rules),
            "sample_fraction": args.sample_fraction,
            "sample_seed": args.sample_seed if args.sample_fraction < 1 else None,
            "vocab_size": model.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "precision": str(args.params_dtype).removeprefix("torch."),
        },
    }


def _block_sequences(args: argparse.Namespace, prefixes: Sequence[Path], rules: ScoringRules) -> int:
    corpora = [IndexedCorpus.open(prefix) for prefix in prefixes]
    num_tokens = sum(corpus.num_tokens for corpus in corpora)
    return default_block_sequences(
        num_sequences=sum(map(len, corpora)),
        num_tokens=round(num_tokens * args.sample_fraction),
        context_tokens=rules.context_tokens,
    )


def is_sampled(sequences: range, *, fraction: float, seed: int) -> np.ndarray:
    """Whether each sequence is in the sample, (sequences,) bool.

    A sequence's number is hashed and compared with the fraction, so that the choice depends on the number and the seed
    alone.

    Args:
        sequences: global ids.
        fraction: in [0, 1].
        seed: another seed gives an independent sample.
    """
    return uniforms(np.arange(sequences.start, sequences.stop), seed) < fraction
