"""Which model reads which corpus: what identifies both, and the checks that they go together."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import load_manifest, manifest_path
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.mcore import checkpoints


@dataclass(frozen=True, kw_only=True)
class TokenizerIdentity:
    """Of the tokenizer that the flags name.

    Attributes:
        place: its path or type, for messages.
        fingerprint: None where our tools do not know this kind of tokenizer.
        vocab_size: ids that it can give.
        must_match: whether a corpus of another fingerprint is refused.
        changed_by: what transformers made of its files, which can be equal to those of the corpus all the same.
    """

    place: str
    fingerprint: Fingerprint | None
    vocab_size: int
    must_match: bool = True
    changed_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelIdentity:
    """The model that reads a corpus.

    Attributes:
        path: a Megatron checkpoint's iteration, or a Hugging Face directory.
        weights: fingerprint of its files.
        vocab_size: rows of its output matrix that are no padding.
        training_data: prefixes that it was trained on, as far as the checkpoint says.
    """

    path: Path
    weights: Fingerprint
    vocab_size: int
    training_data: tuple[Path, ...] = ()


def identity_of_inputs(
    args: argparse.Namespace, prefixes: Sequence[Path], model: ModelIdentity, tokenizer: TokenizerIdentity
) -> dict[str, Any]:
    """`model` and `corpus` of the identity of what a model makes of a corpus, once both were looked at.

    Raises:
        InputError: a corpus that this model cannot read.
        FingerprintMismatchError: a corpus that was made with another tokenizer.
    """
    corpora = [IndexedCorpus.open(prefix) for prefix in prefixes]
    if not any(len(corpus) for corpus in corpora):
        raise InputError("the corpus has no sequences")
    for corpus in corpora:
        _check_tokenizer(corpus.prefix, tokenizer)
        _check_vocabulary(corpus, min(tokenizer.vocab_size, model.vocab_size))
    fingerprints = [corpus.verified_fingerprint() for corpus in corpora]
    if len(set(fingerprints)) < len(fingerprints):
        twins = [
            str(prefix) for prefix, found in zip(prefixes, fingerprints, strict=True) if fingerprints.count(found) > 1
        ]
        raise InputError(f"{' and '.join(twins)} are the same corpus: give each once")
    return {
        "model": {"weights": model.weights, "architecture": checkpoints.architecture(args)},
        "corpus": [
            {"name": corpus.prefix.name, "fingerprint": found, "num_sequences": len(corpus)}
            for corpus, found in zip(corpora, fingerprints, strict=True)
        ],
    }


def _check_tokenizer(prefix: Path, tokenizer: TokenizerIdentity) -> None:
    """Compare with the tokenizer that the corpus's manifest names, where it names one."""
    made_with = tokenizer_of(prefix)
    if tokenizer.must_match and None not in (made_with, tokenizer.fingerprint) and made_with != tokenizer.fingerprint:
        cause = (
            f" ({tokenizer.changed_by}, which the model_type in config.json asks for)" if tokenizer.changed_by else ""
        )
        raise FingerprintMismatchError(
            f"{prefix} was made with tokenizer [{made_with[:SHORT_HEX]}], but {tokenizer.place} is "  # type: ignore[index]
            f"[{tokenizer.fingerprint[:SHORT_HEX]}]{cause}: give --tokenizer-type and --tokenizer-model of the "  # type: ignore[index]
            "tokenizer that the corpus was made with (miniplm inspect names it), or --allow-tokenizer-mismatch where "
            "both give the same ids"
        )


def tokenizer_of(artifact: Path) -> Fingerprint | None:
    """The tokenizer at the end of a corpus's or view's lineage; None where nobody wrote it down."""
    for _ in range(64):  # a cycle of manifests is not worth a set
        if not manifest_path(artifact).exists():
            return None
        parents = load_manifest(artifact).inputs
        found = next((parent.fingerprint for parent in parents if parent.role == "tokenizer"), None)
        if found is not None or not parents:
            return found
        artifact = parent_path(artifact, parents[0])
    return None


def _check_vocabulary(corpus: IndexedCorpus, vocab_size: int, num_probed: int = 256) -> None:
    """Refuse a corpus of another tokenizer, as far as its token ids show it in evenly spaced sequences."""
    step = max(1, len(corpus) // num_probed)
    for index in range(0, len(corpus), step):
        tokens = corpus.sequence(index)
        if len(tokens) and (int(tokens.max()) >= vocab_size or int(tokens.min()) < 0):
            raise InputError(
                f"{corpus.prefix}: sequence {index} holds token {int(tokens.max())}, the tokenizer has {vocab_size}: "
                "give the tokenizer that the corpus was made with"
            )
