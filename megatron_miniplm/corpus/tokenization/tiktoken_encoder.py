"""Megatron's TikTokenizer: a JSON file of ranked byte strings, one of two split patterns, special tokens first.

The reference is `tiktoken`, on which Megatron's class stands. gigatoken knows the pattern `v2` and encodes it some
fifteen times faster; `v1`, which it does not know, stays with tiktoken.
"""

import base64
import binascii
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_file, digest_values
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.tokenization.gigatoken_engine import (
    HARD_TEXTS,
    Encode,
    GigatokenEngine,
    exact_or_none,
    texts_of_control_strings,
    texts_of_vocabulary,
)
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.token_bytes import ByteTable, flatten_ids
from megatron_miniplm.errors import InputError, one_line

# These three are `megatron.core.tokenizers.text.libraries.tiktoken_tokenizer`'s, whose import brings torch along.
DEFAULT_VOCAB_SIZE = 1 << 17
REQUIRED_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
PATTERNS = {
    "v1": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "v2": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
_GIGATOKEN_PATTERNS = {"v2": "nemotron"}


class TikTokenEncoder:
    """A rank file, encoded by gigatoken where that is exact and by `tiktoken` elsewhere.

    Megatron calls `encode(allowed_special="all")`: a special token in the text is that token.
    """

    text_prefix = b""

    def __init__(self, settings: TokenizerSettings, num_threads: int) -> None:
        import tiktoken

        assert settings.tokenizer_model is not None, "checked by make_encoder"
        if settings.tiktoken_pattern not in PATTERNS:
            raise InputError(f"--tiktoken-pattern {settings.tiktoken_pattern} is neither v1 nor v2: choose one")
        self._settings = settings
        self._num_threads = num_threads
        self.vocab_size: int = settings.vocab_size or DEFAULT_VOCAB_SIZE
        self._special_tokens = _special_tokens(settings, self.vocab_size)
        num_special_tokens = len(self._special_tokens)
        self._ranked = _read_ranks(settings.tokenizer_model, self.vocab_size - num_special_tokens, num_special_tokens)
        self.eod_id: int | None = self._special_tokens.index("</s>")
        self._reference = tiktoken.Encoding(
            "megatron",
            pat_str=PATTERNS[settings.tiktoken_pattern],
            mergeable_ranks={token: num_special_tokens + rank for rank, token in enumerate(self._ranked)},
            special_tokens={token: index for index, token in enumerate(self._special_tokens)},
        )
        self.versions = {"tiktoken": version("tiktoken")}
        self._fast = self._exact_gigatoken()
        if self._fast is not None:
            self.versions["gigatoken"] = version("gigatoken")

    def __reduce__(self) -> tuple[type["TikTokenEncoder"], tuple[TokenizerSettings, int]]:
        return TikTokenEncoder, (self._settings, self._num_threads)

    @cached_property
    def token_bytes(self) -> list[bytes]:
        return [*(token.encode() for token in self._special_tokens), *self._ranked]

    def fingerprint(self) -> Fingerprint:
        assert self._settings.tokenizer_model is not None, "checked by make_encoder"
        return digest_values(
            "TikTokenizer",
            digest_file(self._settings.tokenizer_model),
            self._settings.tiktoken_pattern,
            self.vocab_size,
            self._special_tokens,
            self._settings.split_special_tokens,
        )

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._fast(texts) if self._fast is not None else self._encode_reference(texts)

    def token_stops(self, text: str) -> np.ndarray:
        tokens_L, _ = self._encode_reference([text])
        return np.cumsum([len(self.token_bytes[token]) for token in tokens_L.tolist()], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode([int(token) for token in ids])

    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        return self._byte_table.join(tokens_T, lengths_N)

    @cached_property
    def _byte_table(self) -> ByteTable:
        return ByteTable(self.token_bytes)

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._settings.split_special_tokens:
            return flatten_ids(self._reference.encode_ordinary_batch(list(texts), num_threads=self._num_threads))
        return flatten_ids(
            self._reference.encode_batch(list(texts), num_threads=self._num_threads, allowed_special="all")
        )

    def _exact_gigatoken(self) -> Encode | None:
        """The road by way of gigatoken; None where it would not be exact."""
        texts = [
            *HARD_TEXTS,
            *texts_of_control_strings(self._special_tokens),
            *texts_of_vocabulary([token.decode(errors="replace") for token in self._ranked]),
        ]
        return exact_or_none(self._gigatoken, self._encode_reference, texts, library="tiktoken")

    def _gigatoken(self) -> Encode:
        """gigatoken with ids in its own order, ranks first, brought into Megatron's.

        Raises:
            ValueError: what it does not support.
        """
        pattern = _GIGATOKEN_PATTERNS.get(self._settings.tiktoken_pattern)
        if pattern is None:
            raise ValueError(f"--tiktoken-pattern {self._settings.tiktoken_pattern}")
        special_tokens = [] if self._settings.split_special_tokens else self._special_tokens
        if any(longer.startswith(shorter) for shorter, longer in pairwise(sorted(special_tokens))):
            raise ValueError("special tokens that begin alike: tiktoken does not say which one it takes")
        engine = GigatokenEngine(lambda: self._make_engine(pattern, special_tokens), self._num_threads)
        num_ranks, num_special_tokens = len(self._ranked), len(self._special_tokens)
        id_V = np.roll(np.arange(self.vocab_size, dtype=np.uint32), -num_special_tokens)
        assert id_V[0] == num_special_tokens
        assert id_V[num_ranks] == 0

        def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            tokens_T, lengths_N = engine.encode(texts)
            return id_V[tokens_T], lengths_N

        return encode

    def _make_engine(self, pattern: str, special_tokens: Sequence[str]) -> Any:
        import gigatoken

        ids = {token: len(self._ranked) + index for index, token in enumerate(special_tokens)}
        with tempfile.NamedTemporaryFile(suffix=".tiktoken") as stream:  # it loads files only
            for rank, token in enumerate(self._ranked):
                stream.write(base64.b64encode(token) + b" %d\n" % rank)
            stream.flush()
            return gigatoken.Tokenizer.from_tiktoken(stream.name, pattern, ids)


def _special_tokens(settings: TokenizerSettings, vocab_size: int) -> list[str]:
    """The special tokens in the order of their ids: the named ones, then Megatron's `<SPECIAL_i>`."""
    num_special_tokens = settings.tiktoken_num_special_tokens
    named = list(settings.special_tokens or REQUIRED_SPECIAL_TOKENS)
    tokens = [*named, *(f"<SPECIAL_{index}>" for index in range(len(named), num_special_tokens))]
    if missing := [token for token in REQUIRED_SPECIAL_TOKENS if token not in named]:
        raise InputError(f"--tokenizer-special-tokens of a TikTokenizer lack {', '.join(missing)}: add them")
    if len(set(tokens)) < len(tokens):
        raise InputError("--tokenizer-special-tokens has a token twice (Megatron adds <SPECIAL_i>): leave one out")
    if not len(named) <= num_special_tokens < vocab_size:
        raise InputError(
            f"--tiktoken-num-special-tokens {num_special_tokens} must hold the {len(named)} special tokens and leave "
            f"room in a vocabulary of {vocab_size}: change it or --vocab-size"
        )
    return tokens


def _read_ranks(path: Path, num_ranks: int, num_special_tokens: int) -> list[bytes]:
    """The first `num_ranks` byte strings of a rank file, by rank.

    Raises:
        InputError: it is no such file, or too short.
    """
    remedy = 'give a JSON list of {"rank": 0, "token_bytes": <base64>, "token_str": ...}, the 256 bytes first'
    try:
        with open_regular(path) as stream:
            entries = json.loads(stream.read())
        ranked = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
        ranks = [entry["rank"] for entry in entries]
    except (OSError, ValueError, TypeError, LookupError, binascii.Error) as error:
        raise InputError(f"{path} is not a rank file ({one_line(error)}): {remedy}") from None
    if ranks != list(range(len(ranks))) or ranked[:256] != [bytes([byte]) for byte in range(256)]:
        raise InputError(f"{path} does not rank the 256 bytes first and the others after them, in order: {remedy}")
    if len(ranked) < num_ranks:
        raise InputError(
            f"{path} has {len(ranked)} tokens, too few for a vocabulary of {num_ranks + num_special_tokens} with "
            f"{num_special_tokens} special tokens: give --vocab-size {len(ranked) + num_special_tokens}"
        )
    taken = ranked[:num_ranks]
    if len(set(taken)) < len(taken):
        raise InputError(f"{path} ranks some token twice: {remedy}")
    return taken
