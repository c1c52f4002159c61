"""The `tokenizers` object that Megatron ends with, and which texts gigatoken encodes as it does.

A tokenizer.json gives every added token five flags. `tokenizers` first cuts the text at the tokens with
`normalized=False`, then normalizes the rest and cuts it at the others; `single_word`, `lstrip` and `rstrip` change
where a token matches and what it swallows. gigatoken matches all tokens at once in the raw text. The two agree except
on texts that hold one of the tokens found here, which go to `tokenizers`.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts.reading import open_regular, require_at_most
from megatron_miniplm.corpus.tokenization.gigatoken_engine import is_rust_error
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.errors import InputError, one_line
from megatron_miniplm.runtime.requirements import missing_packages_are_user_errors

if TYPE_CHECKING:
    import tokenizers


logger = logging.getLogger(__name__)

_GPT2_END_OF_TEXT = "<|endoftext|>"
_NAMED_TOKENS = frozenset({"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
#: Keys of tokenizer_config.json under which transformers takes tokenizer.json as it stands.
_PLAIN_KEYS = _NAMED_TOKENS | {"tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "backend"}
_PLAIN_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
#: Further files that change what transformers makes of tokenizer.json.
_OVERRIDING_FILES = ("config.json", "special_tokens_map.json", "added_tokens.json")
#: The largest known tokenizer.json has some 35 MB; parsed it takes several times as much.
_MAX_TOKENIZER_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class LoadedTokenizer:
    """A tokenizer as Megatron ends with it.

    Attributes:
        eos_token: its end-of-sequence token, which is Megatron's end of document; None if it has none.
        versions: the packages that make the ids, with their versions.
        changed_by: what transformers made of tokenizer.json, for people; None if it left the ids alone.
    """

    tokenizer: "tokenizers.Tokenizer"
    eos_token: str | None
    versions: dict[str, str]
    changed_by: str | None = None


def load_gpt2(settings: TokenizerSettings) -> LoadedTokenizer:
    """What transformers' GPT2Tokenizer makes of `vocab.json` and `merges.txt`."""
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(settings.vocab_file), str(settings.merge_file))
    except BaseException as error:
        if not is_rust_error(error):
            raise
        raise InputError(
            f"{settings.vocab_file} and {settings.merge_file} are not the vocab.json and merges.txt of a GPT-2 "
            f"tokenizer ({one_line(error)}): give those"
        ) from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    added = (_GPT2_END_OF_TEXT, *settings.special_tokens)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in added])
    return LoadedTokenizer(
        tokenizer=tokenizer, eos_token=_GPT2_END_OF_TEXT, versions={"tokenizers": version("tokenizers")}
    )


def load_directory(settings: TokenizerSettings) -> LoadedTokenizer:
    """The `tokenizers` object that Megatron ends with, from the directory of a HuggingFace fast tokenizer.

    Megatron loads through transformers, which may rebuild or extend what tokenizer.json says. That import takes
    seconds and brings torch along, so it is done only where it could make a difference.
    """
    import tokenizers

    assert settings.tokenizer_model is not None, "checked by make_encoder"
    directory = settings.tokenizer_model.parent if settings.tokenizer_model.is_file() else settings.tokenizer_model
    if not (directory / "tokenizer.json").is_file():
        raise InputError(f"{directory} has no tokenizer.json: give the directory of a HuggingFace fast tokenizer")
    config = _read_config(directory / "tokenizer_config.json")
    require_at_most(directory / "tokenizer.json", _MAX_TOKENIZER_BYTES)
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    except BaseException as error:
        if not is_rust_error(error):
            raise
        raise InputError(
            f"{directory / 'tokenizer.json'} is not a tokenizer ({one_line(error)}): save it again"
        ) from None
    if not settings.special_tokens and _is_plain(tokenizer, config, directory):
        eos_token = _token_text(config.get("eos_token") or config.get("sep_token"))
        return LoadedTokenizer(tokenizer=tokenizer, eos_token=eos_token, versions={"tokenizers": version("tokenizers")})
    logger.info("%s is not a plain fast tokenizer: loading it through transformers, as Megatron does", directory)
    with missing_packages_are_user_errors(f"the tokenizer in {directory}"):
        built, eos_token, class_name = _load_through_transformers(directory, settings.special_tokens)
    versions = {name: version(name) for name in ("tokenizers", "transformers")}
    changed_by = None
    if parts := _changed_parts(tokenizer, built):
        changed_by = (
            f"transformers {versions['transformers']} builds a {class_name} from {directory}, with another "
            f"{' and '.join(parts)} than its tokenizer.json has"
        )
        logger.warning("%s; Megatron does the same", changed_by)
    return LoadedTokenizer(tokenizer=built, eos_token=eos_token, versions=versions, changed_by=changed_by)


def _changed_parts(written: "tokenizers.Tokenizer", built: "tokenizers.Tokenizer") -> list[str]:
    """The steps of tokenizer.json that come before the model, where transformers replaced them."""
    ours, theirs = (json.loads(each.to_str()) for each in (written, built))
    return [name for name in ("normalizer", "pre_tokenizer") if ours[name] != theirs[name]]


def _read_config(path: Path) -> dict[str, Any]:
    try:
        require_at_most(path, _MAX_CONFIG_BYTES)
        with open_regular(path) as stream:
            config = json.loads(stream.read(_MAX_CONFIG_BYTES).decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({one_line(error)}): save the tokenizer again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object: save the tokenizer again")
    texts = {name: _token_text(config.get(name)) for name in sorted(_NAMED_TOKENS)}
    for name, text in {**texts, "tokenizer_class": config.get("tokenizer_class")}.items():
        if not isinstance(text, str | None):
            raise InputError(f"{path}: {name} is {text!r}, expected a string: save the tokenizer again")
    return config


def _is_plain(tokenizer: "tokenizers.Tokenizer", config: dict[str, Any], directory: Path) -> bool:
    """Whether transformers and Megatron would leave tokenizer.json as it stands.

    They do for the generic class, if every named token is already a special token that matches literally.
    """
    if not config.keys() <= _PLAIN_KEYS or config.get("tokenizer_class", "TokenizersBackend") not in _PLAIN_CLASSES:
        return False
    if any((directory / name).exists() for name in _OVERRIDING_FILES):
        return False
    literal = {
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    }
    named = {_token_text(config[key]) for key in _NAMED_TOKENS & config.keys() if config[key] is not None}
    return named <= literal


def _token_text(token: str | dict[str, Any] | None) -> str | None:
    """tokenizer_config.json holds a token as a string or as an object with its `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _load_through_transformers(
    directory: Path, special_tokens: Sequence[str]
) -> "tuple[tokenizers.Tokenizer, str | None, str]":
    """What `megatron.core.tokenizers.text.libraries.huggingface_tokenizer` does with its default arguments.

    Returns:
        The tokenizer, its end-of-sequence token, and the name of its class in transformers.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True, trust_remote_code=False)
    except BaseException as error:  # whatever a model's own class raises
        if not is_rust_error(error):
            raise
        raise InputError(
            f"transformers cannot load the tokenizer in {directory} ({one_line(error)}): save it again"
        ) from None
    if not tokenizer.is_fast:
        raise InputError(f"{directory} holds a tokenizer written in Python: save it as a fast one (tokenizer.json)")
    named: dict[str, Any] = {"additional_special_tokens": list(special_tokens)}
    for name, twin in (("sep_token", "eos_token"), ("cls_token", "bos_token")):
        if getattr(tokenizer, name) is None and getattr(tokenizer, twin):
            named[name] = getattr(tokenizer, twin)
        elif getattr(tokenizer, twin) is None and getattr(tokenizer, name):
            named[twin] = getattr(tokenizer, name)
    tokenizer.add_special_tokens(named)
    return tokenizer.backend_tokenizer, tokenizer.eos_token, type(tokenizer).__name__


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
    inexact = [token for token in added if not _matches_in_raw_text(token, added, normalizers)]
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


def _matches_in_raw_text(token: dict[str, Any], added: Sequence[dict[str, Any]], normalizers: set[str]) -> bool:
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
