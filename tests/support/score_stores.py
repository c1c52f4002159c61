"""Score stores with scores of our choosing, as a scoring run leaves them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import digest_values
from megatron_miniplm.artifacts.manifest import input_of
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.indexed import IndexedCorpus

VERSIONS = {"megatron-core": "0.19.2", "torch": "2.14.1"}

#: Tokens, scores and scored tokens of seven sequences: blocks of 3, 3 and 1.
SMALL_LENGTHS = [4, 0, 2, 1, 3, 6, 2]
SMALL_NLL = [3.5, 0.0, 1.25, 0.0, 2.5, 9.0, 0.75]
SMALL_NUM_TOKENS = [3, 0, 1, 0, 2, 5, 1]


def identity_of(corpora: Sequence[IndexedCorpus], *, model: str, block_sequences: int = 3) -> dict[str, Any]:
    return {
        "model": {"weights": digest_values(model), "architecture": {"num_layers": 2}},
        "corpus": [
            {"name": corpus.prefix.name, "fingerprint": corpus.fingerprint(), "num_sequences": len(corpus)}
            for corpus in corpora
        ],
        "settings": {"block_sequences": block_sequences, "context_tokens": 64, "precision": "float32"},
    }


def write_scores(
    directory: Path,
    corpora: Sequence[IndexedCorpus],
    nll: Sequence[float],
    num_tokens: Sequence[int] | None = None,
    *,
    block_sequences: int = 3,
    settings: dict[str, Any] | None = None,
) -> ScoreStore:
    """Write a finished store of a model named like the directory; by default all tokens but the first are scored.

    Args:
        settings: of the identity, beside those that every store has.
    """
    if num_tokens is None:
        num_tokens = np.concatenate([np.maximum(corpus.lengths_N - 1, 0) for corpus in corpora])
    identity = identity_of(corpora, model=directory.name, block_sequences=block_sequences)
    identity["settings"].update(settings or {})
    store = ScoreStore.create_or_resume(directory, identity)
    for block in range(store.plan.num_blocks):
        ids = list(store.plan.sequences(block))
        store.write_block(block, np.asarray(nll, np.float64)[ids], np.asarray(num_tokens)[ids])
    model = input_of("model", directory.parent / "checkpoint", digest_values(directory.name), relative_to=directory)
    inputs = [input_of("corpus", corpus.prefix, corpus.fingerprint(), relative_to=directory) for corpus in corpora]
    store.finish((model, *inputs), VERSIONS)
    return store
