"""Text to token ids, exactly as Megatron's tokenizers of the same names give them.

Each kind has its own module; this one says what they share, and chooses. The ids are those of the reference library on
which Megatron's class stands; gigatoken takes over where that is exact (`gigatoken_engine`).
"""

import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.corpus.tokenization.token_bytes import flatten_ids, split_ids
from megatron_miniplm.errors import InputError


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Megatron's tokenizer flags, under its names and with its defaults; see `commands/tokenizer_flags.py`.

    Attributes:
        tokenizer_type: one of `TOKENIZER_TYPES`.
        tokenizer_model: of HuggingFace a directory with `tokenizer.json`, or that file; of SentencePiece the model; of
            tiktoken the JSON file with the ranks.
        vocab_file, merge_file: of GPT-2's BPE, `vocab.json` and `merges.txt`.
        vocab_size: of tiktoken (None is 131,072) and of the null tokenizer.
        special_tokens: `--tokenizer-special-tokens`.
        null_tokenizer_eod_id: None is `vocab_size - 1`.
        split_special_tokens: ours; special tokens in the text are encoded as any other text.
    """

    tokenizer_type: str
    tokenizer_model: Path | None = None
    vocab_file: Path | None = None
    merge_file: Path | None = None
    vocab_size: int | None = None
    tiktoken_pattern: str = "v2"
    tiktoken_num_special_tokens: int = 1000
    special_tokens: tuple[str, ...] = ()
    null_tokenizer_eod_id: int | None = None
    split_special_tokens: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files and directories that were given."""
        return tuple(path for name in _FILES if (path := getattr(self, name)) is not None)

    def recorded(self) -> dict[str, Any]:
        """What shapes the ids besides the files, as JSON values: the type, and what differs from the defaults."""
        values = {name: getattr(self, name) for name in ("tokenizer_type", *sorted(self.given())) if name not in _FILES}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def given(self) -> set[str]:
        """Names of the settings that differ from their defaults."""
        return {
            field.name
            for field in fields(self)
            if field.default is not MISSING and getattr(self, field.name) != field.default
        }


class TextEncoder(Protocol):
    """A loaded tokenizer; can be sent to another process.

    Axes: T ids of all texts, N texts, L ids of one text, V ids of the vocabulary.

    Attributes:
        vocab_size: Megatron's `tokenizer.vocab_size`, added tokens included, padding not.
        eod_id: Megatron's `tokenizer.eod`, None if the tokenizer has no such token.
        versions: the packages that make the ids, with their versions.
    """

    vocab_size: int
    eod_id: int | None
    versions: dict[str, str]

    @property
    def text_prefix(self) -> bytes:
        """The UTF-8 bytes that the tokenizer puts before each text: SentencePiece's space, a template's tokens."""
        ...

    @property
    def token_bytes(self) -> list[bytes] | None:
        """The UTF-8 bytes of text that each of V ids stands for; None if that depends on more than the id.

        Joined over the ids of a text they are `text_prefix + text.encode()`, or their number differs from it: so it is
        with text that the tokenizer changes on its way (a literal `▁` in SentencePiece, white space that a special
        token swallows), or that has no ids.
        """
        ...

    def fingerprint(self) -> Fingerprint:
        """Identity of the mapping from text to ids, wherever the files lie."""
        ...

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode N texts.

        Returns:
            tokens_T: the ids of all texts, one after the other; an integer dtype.
            lengths_N: ids of each text, int64, summing to T.

        Raises:
            InputError: a text that the null tokenizer cannot read.
        """
        ...

    def token_stops(self, text: str) -> np.ndarray:
        """The UTF-8 byte of the text at which each of its L ids ends: int64, non-decreasing; exact, and slow.

        Of the ids that share one character, those before the last end at its start or at its end, as the reference
        library has it. An id that stands for no text ends where the one before it does.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        ...

    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        """The UTF-8 text of N sequences that lie one after the other, special tokens included.

        Ids that begin or end within a character give its bytes as they are where there is a table of bytes, and U+FFFD
        elsewhere. SentencePiece's own space is taken from the start of every sequence, as its `decode` does: right for
        whole documents; a sequence that begins within one loses the space before its first word.
        """
        ...


_FILES = ("tokenizer_model", "vocab_file", "merge_file")


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
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if num_threads == 1 else "true"  # a pool of one is a thread more
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
    for name in _FILES:
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
