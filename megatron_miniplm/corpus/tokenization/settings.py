"""What a tokenizer is made from, and what every encoder can do."""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_miniplm.artifacts import Fingerprint

#: Settings that are paths.
FILES = ("tokenizer_model", "vocab_file", "merge_file")


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Megatron's tokenizer flags, under its names and with its defaults; see `commands/shared_flags.py`.

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
        return tuple(path for name in FILES if (path := getattr(self, name)) is not None)

    def recorded(self) -> dict[str, Any]:
        """What shapes the ids besides the files, as JSON values: the type, and what differs from the defaults."""
        values = {name: getattr(self, name) for name in ("tokenizer_type", *sorted(self.given())) if name not in FILES}
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
