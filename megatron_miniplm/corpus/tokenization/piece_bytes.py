"""What the pieces of a tokenizer.json stand for in UTF-8, as far as its steps let each piece be told alone."""

import re
from collections.abc import Callable
from typing import Any

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
