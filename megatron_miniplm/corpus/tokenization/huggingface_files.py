"""The `tokenizers` object that Megatron ends with, from the files that it is given."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.corpus.tokenization.rust_errors import is_rust_error
from megatron_miniplm.corpus.tokenization.tokenizers import TokenizerSettings
from megatron_miniplm.errors import InputError
from megatron_miniplm.requirements import missing_packages_are_user_errors

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
            f"tokenizer ({error}): give those"
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
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    except BaseException as error:
        if not is_rust_error(error):
            raise
        raise InputError(f"{directory / 'tokenizer.json'} is not a tokenizer ({error}): save it again") from None
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
        with open_regular(path) as stream:
            config = json.loads(stream.read().decode("utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}): save the tokenizer again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object: save the tokenizer again")
    for name in (*sorted(_NAMED_TOKENS), "tokenizer_class"):
        text = _token_text(config.get(name))
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
        raise InputError(f"transformers cannot load the tokenizer in {directory} ({error}): save it again") from None
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
