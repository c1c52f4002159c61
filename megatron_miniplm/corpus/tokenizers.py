"""Text to token ids, exactly as Megatron's tokenizers of the same names give them."""

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_file, digest_values
from megatron_miniplm.corpus.huggingface_encoder import HuggingFaceEncoder, flatten_ids
from megatron_miniplm.errors import InputError

TOKENIZER_TYPES = ("HuggingFaceTokenizer", "SentencePieceTokenizer")


class TextEncoder(Protocol):
    """A loaded tokenizer.

    Attributes:
        vocab_size: Megatron's `tokenizer.vocab_size`, added tokens included, padding not.
        eod_id: Megatron's `tokenizer.eod`, None if the tokenizer has no such token.
        versions: the packages that make the ids, with their versions.
    """

    vocab_size: int
    eod_id: int | None
    versions: dict[str, str]

    def fingerprint(self) -> Fingerprint:
        """Identity of the mapping from text to ids, wherever the files lie."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N texts.

        Returns:
            tokens_T: the ids of all texts, one after the other; an integer dtype.
            lengths_N: ids of each text, int64, summing to T.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        ...


def load_encoder(tokenizer_type: str, tokenizer_model: Path, num_threads: int) -> TextEncoder:
    """Load a tokenizer.

    Args:
        tokenizer_type: Megatron's name, one of `TOKENIZER_TYPES`.
        tokenizer_model: for HuggingFace a directory with `tokenizer.json`, or that file; for SentencePiece the model.
        num_threads: encoder threads; the ids do not depend on it. The thread pools behind HuggingFace tokenizers
            are made once a process, so the first call decides.

    Raises:
        InputError: unknown type, or a path at which there is no such tokenizer.
    """
    if tokenizer_type not in TOKENIZER_TYPES:
        raise InputError(f"--tokenizer-type {tokenizer_type} is unknown: choose one of {', '.join(TOKENIZER_TYPES)}")
    if not tokenizer_model.exists():
        raise InputError(f"--tokenizer-model {tokenizer_model} does not exist: give the path of a trained tokenizer")
    if tokenizer_type == "SentencePieceTokenizer":
        return SentencePieceEncoder(tokenizer_model, num_threads)
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    return HuggingFaceEncoder(tokenizer_model)


class SentencePieceEncoder:
    """A SentencePiece model, encoded by `sentencepiece` itself.

    gigatoken would be some three times faster, but reads a literal `<s>` in the text as the BOS token.
    """

    def __init__(self, model_path: Path, num_threads: int) -> None:
        import sentencepiece

        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(model_path))
        except (OSError, RuntimeError) as error:
            raise InputError(f"{model_path} is not a SentencePiece model ({error}): give a .model file") from None
        self._model_path = model_path
        self._num_threads = num_threads
        self.vocab_size: int = self._processor.get_piece_size()
        eos_id = self._processor.eos_id()
        self.eod_id = eos_id if eos_id >= 0 else None
        self.versions = {"sentencepiece": version("sentencepiece")}

    def fingerprint(self) -> Fingerprint:
        return digest_values("SentencePieceTokenizer", digest_file(self._model_path))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return flatten_ids(self._processor.encode(list(texts), out_type=int, num_threads=self._num_threads))

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids])
