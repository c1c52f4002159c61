"""Text to token ids, exactly as Megatron's tokenizers of the same names give them.

Each kind has its own module; this one says what they share, and chooses. The ids are those of the reference library on
which Megatron's class stands; gigatoken takes over where that is exact (`gigatoken_engine`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.corpus.tokenization.settings import FILES, TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.token_bytes import flatten_ids, split_ids
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.processes import set_encoder_threads


@dataclass(frozen=True, kw_only=True)
class _Flags:
    """Names of the settings that a tokenizer type reads."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()


_SENTENCEPIECE = _Flags(required=("tokenizer_model",))
_FLAGS_OF_TYPE = {
    "HuggingFaceTokenizer": _Flags(required=("tokenizer_model",), optional=("special_tokens", "split_special_tokens")),
    "SentencePieceTokenizer": _SENTENCEPIECE,
    "GPTSentencePieceTokenizer": _SENTENCEPIECE,
    "Llama2Tokenizer": _SENTENCEPIECE,
    "TikTokenizer": _Flags(
        required=("tokenizer_model",),
        optional=(
            "vocab_size",
            "tiktoken_pattern",
            "tiktoken_num_special_tokens",
            "special_tokens",
            "split_special_tokens",
        ),
    ),
    "GPT2BPETokenizer": _Flags(
        required=("vocab_file", "merge_file"), optional=("special_tokens", "split_special_tokens")
    ),
    "NullTokenizer": _Flags(required=("vocab_size",), optional=("null_tokenizer_eod_id",)),
}
TOKENIZER_TYPES = tuple(_FLAGS_OF_TYPE)


def load_encoder(tokenizer_type: str, tokenizer_model: Path, num_threads: int) -> TextEncoder:
    """`make_encoder` of a tokenizer that is one file or directory."""
    return make_encoder(TokenizerSettings(tokenizer_type=tokenizer_type, tokenizer_model=tokenizer_model), num_threads)


def make_encoder(settings: TokenizerSettings, num_threads: int) -> TextEncoder:
    """Load a tokenizer; takes up to a second, most of it to make sure that gigatoken is exact.

    Args:
        num_threads: encoder threads; the ids do not depend on it. The thread pools behind tokenizers and gigatoken are
            made once a process, so the first call decides.

    Raises:
        InputError: a type that is not supported, a flag that it lacks or does not read, or a path at which there is no
            such tokenizer.
    """
    _check(settings)
    set_encoder_threads(num_threads)
    match settings.tokenizer_type:  # each module imports its library, and only the one that is wanted
        case "HuggingFaceTokenizer" | "GPT2BPETokenizer":
            from megatron_miniplm.corpus.tokenization.huggingface_encoder import HuggingFaceEncoder

            return HuggingFaceEncoder(settings, num_threads)
        case "TikTokenizer":
            from megatron_miniplm.corpus.tokenization.tiktoken_encoder import TikTokenEncoder

            return TikTokenEncoder(settings, num_threads)
        case "NullTokenizer":
            return NullEncoder(settings)
        case _:
            from megatron_miniplm.corpus.tokenization.sentencepiece_encoder import SentencePieceEncoder

            return SentencePieceEncoder(settings, num_threads)


def _check(settings: TokenizerSettings) -> None:
    tokenizer_type = settings.tokenizer_type
    flags = _FLAGS_OF_TYPE.get(tokenizer_type)
    if flags is None:
        known = ", ".join(TOKENIZER_TYPES)
        raise InputError(f"--tokenizer-type {tokenizer_type} is not supported: choose one of {known}")
    given = settings.given()
    for name in flags.required:
        if name not in given:
            raise InputError(f"--tokenizer-type {tokenizer_type} needs {_flag(name)}: give it")
    for name in sorted(given - {*flags.required, *flags.optional}):
        raise InputError(f"--tokenizer-type {tokenizer_type} does not read {_flag(name)}: leave it out")
    for name in FILES:
        path = getattr(settings, name)
        if path is not None and not path.exists():
            raise InputError(f"{_flag(name)} {path} does not exist: give the path of a trained tokenizer")


def _flag(name: str) -> str:
    return "--tokenizer-special-tokens" if name == "special_tokens" else f"--{name.replace('_', '-')}"


class NullEncoder:
    """Megatron's NullTokenizer: the text is the ids, in digits, with one space between them."""

    text_prefix = b""
    token_bytes = None  # the spaces belong to no id

    def __init__(self, settings: TokenizerSettings) -> None:
        assert settings.vocab_size is not None, "checked by make_encoder"
        self.vocab_size: int = settings.vocab_size
        eod_id = settings.null_tokenizer_eod_id
        self.eod_id: int | None = eod_id if eod_id is not None else self.vocab_size - 1
        self.versions: dict[str, str] = {}

    def fingerprint(self) -> Fingerprint:
        return digest_values("NullTokenizer", self.vocab_size, self.eod_id)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return flatten_ids([self._ids(text) for text in texts])

    def token_stops(self, text: str) -> np.ndarray:
        sizes_L = np.array([len(word.encode()) for word in text.split(" ")], dtype=np.int64)
        return np.cumsum(sizes_L + 1) - 1

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        return [self.decode(ids).encode() for ids in split_ids(tokens_T, lengths_N)]

    def _ids(self, text: str) -> list[int]:
        try:
            ids = [int(word) for word in text.split(" ")]
        except ValueError as error:
            raise InputError(
                f"NullTokenizer cannot read the text {text[:40]!r} ({error}): give ids with single spaces between them"
            ) from None
        for token in (min(ids), max(ids)):
            if not 0 <= token < self.vocab_size:
                raise InputError(
                    f"NullTokenizer has {self.vocab_size} ids, and the text {text[:40]!r} has {token}: give another "
                    "--vocab-size"
                )
        return ids
