"""Which texts hold an added token whose flags gigatoken does not implement.

A tokenizer.json gives every added token five flags. `tokenizers` first cuts the text at the tokens with
`normalized=False`, then normalizes what is left and cuts it at the others; `single_word`, `lstrip` and `rstrip` change
where a match is taken and what it swallows. gigatoken matches all tokens at once in the raw text. The two agree except
on texts that hold a token named here, so those texts go to the reference.
"""

from collections.abc import Callable, Sequence
from typing import Any

_ASCII_SPACE = frozenset(" \t\n\r")
#: Normalizers that leave ASCII text as it is. The canonical ones never produce or consume an ASCII space either.
_CANONICAL = frozenset({"NFC", "NFD"})
_ASCII_SAFE = _CANONICAL | {"NFKC", "NFKD"}


def needs_reference(
    steps: dict[str, Any], normalize: Callable[[str], str], *, split_special_tokens: bool
) -> Callable[[str], bool] | None:
    """The test for texts that only the reference encodes exactly; None if gigatoken implements every added token.

    Args:
        steps: tokenizer.json without its model.
        normalize: its normalizer.
        split_special_tokens: special tokens in the text are ordinary text; the reference matches and then ignores them,
            which hides other tokens that overlap them.
    """
    added: list[dict[str, Any]] = steps["added_tokens"]
    normalizers = normalizer_types(steps)
    inexact = [token for token in added if not _is_plain(token, added, normalizers)]
    if split_special_tokens and not all(token["special"] for token in added):
        inexact += [token for token in added if token["special"]]
    if not inexact:
        return None
    contents = _contents(inexact)
    if not normalizers or not any(token["normalized"] for token in inexact):
        return lambda text: _holds_any(text, contents)
    # With none of the tokens that are matched first, the reference normalizes the text as a whole.
    matched_first = _contents([token for token in added if not token["normalized"]])
    normalized = [normalize(token["content"]) for token in inexact if token["normalized"]]
    keeps_ascii = normalizers <= _ASCII_SAFE

    def holds_inexact(text: str) -> bool:
        if _holds_any(text, contents):
            return True
        if keeps_ascii and text.isascii():
            return False
        return _holds_any(text, matched_first) or _holds_any(normalize(text), normalized)

    return holds_inexact


def normalizer_types(steps: dict[str, Any]) -> set[str]:
    """The types of all steps of the normalizer; empty without one."""
    return _types(steps["normalizer"] or {"type": "Sequence", "normalizers": []})


def _types(normalizer: dict[str, Any]) -> set[str]:
    if normalizer["type"] != "Sequence":
        return {normalizer["type"]}
    return set().union(*(_types(step) for step in normalizer["normalizers"]))


def _is_plain(token: dict[str, Any], added: Sequence[dict[str, Any]], normalizers: set[str]) -> bool:
    """Whether a match in the raw text is a match of the reference, and swallows nothing around it."""
    if token["single_word"] or token["lstrip"] or token["rstrip"]:
        return False
    if not token["normalized"]:
        return True
    if not normalizers and all(other["normalized"] for other in added):
        return True  # one group, matched in the raw text
    # Runs of spaces, as GPT-NeoX's tokenizer has them: no normalizer here touches them, and no other token overlaps.
    return (
        set(token["content"]) <= _ASCII_SPACE
        and normalizers <= _CANONICAL
        and all(other["normalized"] or not _ASCII_SPACE & set(other["content"]) for other in added)
    )


def _contents(tokens: Sequence[dict[str, Any]]) -> list[str]:
    return [token["content"] for token in tokens]


def _holds_any(text: str, contents: Sequence[str]) -> bool:
    return any(content in text for content in contents)
