"""Ids of several texts in flat arrays, to and from lists, and to the bytes that they stand for, as far as the steps of
a tokenizer.json let each piece be told alone.

Axes: T ids of all texts, N texts, V ids of the vocabulary.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

_BLOCK_TOKENS = 1 << 15  # small enough for the processor's cache


def flatten_ids(ids: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """One list of ids a text, as flat ids (T, uint32) and lengths (N, int64)."""
    lengths_N = np.array([len(sequence) for sequence in ids], dtype=np.int64)
    tokens_T = np.fromiter(chain.from_iterable(ids), np.uint32, count=int(lengths_N.sum()))
    return tokens_T, lengths_N


def split_ids(tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[list[int]]:
    """The inverse of `flatten_ids`."""
    return [part_T.tolist() for part_T in np.split(tokens_T, np.cumsum(lengths_N))[:-1]]


def wrap_ids(
    tokens_T: np.ndarray, lengths_N: np.ndarray, before: Sequence[int], behind: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Put the same ids before, and others behind, each of N texts."""
    wrapped_N = lengths_N + len(before) + len(behind)
    starts_N = np.cumsum(wrapped_N) - wrapped_N
    first_N = starts_N + len(before)
    wrapped_T = np.empty(int(wrapped_N.sum()), tokens_T.dtype)
    wrapped_T[np.arange(len(tokens_T)) + np.repeat(first_N - (np.cumsum(lengths_N) - lengths_N), lengths_N)] = tokens_T
    wrapped_T[starts_N[:, None] + np.arange(len(before))] = before
    wrapped_T[(first_N + lengths_N)[:, None] + np.arange(len(behind))] = behind
    return wrapped_T, wrapped_N


def interleave_ids(
    is_second_N: np.ndarray, first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths of N texts that were encoded in two groups, in the order of the texts."""
    lengths_N = np.empty(len(is_second_N), np.int64)
    lengths_N[~is_second_N], lengths_N[is_second_N] = first[1], second[1]
    is_second_T = np.repeat(is_second_N, lengths_N)
    tokens_T = np.empty(len(is_second_T), np.uint32)
    tokens_T[~is_second_T], tokens_T[is_second_T] = first[0], second[0]
    return tokens_T, lengths_N


class ByteTable:
    """The bytes of every id of a vocabulary, laid out so that runs of ids are joined at some 140 MB/s."""

    def __init__(self, token_bytes_V: Sequence[bytes]) -> None:
        self._bytes = np.frombuffer(b"".join(token_bytes_V), np.uint8)
        self._sizes_V = np.fromiter(map(len, token_bytes_V), np.int32, len(token_bytes_V))
        self._starts_V = np.cumsum(self._sizes_V, dtype=np.int32) - self._sizes_V

    def join(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        """The bytes of N sequences of ids that lie one after the other."""
        blocks = [
            self._gather(tokens_T[start : start + _BLOCK_TOKENS]) for start in range(0, len(tokens_T), _BLOCK_TOKENS)
        ]
        data = b"".join(blocks)
        stop_bytes_T = np.cumsum(self._sizes_V[tokens_T], dtype=np.int64)
        stop_bytes_N = np.concatenate([[0], stop_bytes_T])[np.cumsum(lengths_N)].tolist()
        return [data[start:stop] for start, stop in pairwise([0, *stop_bytes_N])]

    def _gather(self, tokens_T: np.ndarray) -> bytes:
        sizes_T = self._sizes_V[tokens_T]
        starts_T = np.cumsum(sizes_T, dtype=np.int32) - sizes_T  # in the result
        source = np.repeat(self._starts_V[tokens_T] - starts_T, sizes_T)
        source += np.arange(len(source), dtype=np.int32)
        return self._bytes[source].tobytes()


_BYTE_PIECE = re.compile("<0x[0-9A-F]{2}>")


def bytes_of_piece(decoder: dict[str, Any]) -> Callable[[str], bytes] | None:
    """What a piece of the vocabulary decodes to, for byte-level BPE and for SentencePiece's BPE with byte fallback."""
    if decoder.get("type") == "ByteLevel":
        byte_of = _byte_of_character()
        return lambda piece: bytes(map(byte_of.__getitem__, piece)) if byte_of.keys() >= set(piece) else piece.encode()
    kinds = {step.get("type"): step for step in decoder.get("decoders", ())}
    if not {"Replace", "ByteFallback"} <= kinds.keys() <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return None
    if (kinds["Replace"]["pattern"], kinds["Replace"]["content"]) != ({"String": "▁"}, " "):
        return None
    return lambda piece: (
        bytes([int(piece[3:5], 16)]) if _BYTE_PIECE.fullmatch(piece) else piece.replace("▁", " ").encode()
    )


def is_byte_level(steps: dict[str, Any]) -> bool:
    return (steps["decoder"] or {}).get("type") == "ByteLevel"


def keeps_text(steps: dict[str, Any]) -> bool:
    """Whether ids stand for the text as it is, but for its first bytes.

    What NFC changes (little text is not in NFC) changes the number of bytes too, with few exceptions.
    """
    normalizer = steps["normalizer"] or {}
    normalizers = {step.get("type") for step in normalizer.get("normalizers", [normalizer])} - {None}
    if is_byte_level(steps):
        return normalizers <= {"NFC"} and _splits_only(steps)
    return normalizers <= {"Prepend", "Replace"} and (steps["pre_tokenizer"] or {}).get("type") in (None, "Metaspace")


def _splits_only(steps: dict[str, Any]) -> bool:
    """Whether what stands before a byte-level model cuts the text into pieces, and neither adds nor drops any."""
    pre_tokenizer = steps["pre_tokenizer"] or {}
    return all(
        (step.get("type") == "ByteLevel" and not step["add_prefix_space"])
        or (step.get("type") in {"Split", "Punctuation"} and step["behavior"] != "Removed")
        or step.get("type") == "Digits"
        for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    )


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, and characters from U+0100 on for the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}
