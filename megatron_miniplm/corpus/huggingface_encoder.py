"""HuggingFace fast tokenizers and GPT-2's two files, with the ids that Megatron's classes give, as fast as is exact.

The reference is the `tokenizers` library, on which transformers and with it Megatron stand. gigatoken encodes
byte-level BPE some twenty times faster; it takes over only after it has equalled the reference on hard texts when the
tokenizer is loaded.
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.corpus.gigatoken_engine import (
    HARD_TEXTS,
    Encode,
    GigatokenEngine,
    exact_or_none,
    texts_of_control_strings,
    texts_of_vocabulary,
)
from megatron_miniplm.corpus.token_bytes import ByteTable, flatten_ids, split_ids
from megatron_miniplm.corpus.tokenizers import TokenizerSettings
from megatron_miniplm.errors import InputError

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


class HuggingFaceEncoder:
    """A fast tokenizer, encoded by gigatoken where that is exact and by `tokenizers` elsewhere."""

    text_prefix = b""

    def __init__(self, settings: TokenizerSettings, num_threads: int) -> None:
        load = _load_gpt2 if settings.tokenizer_type == "GPT2BPETokenizer" else _load_directory
        self._settings = settings
        self._reference, eos_token, self.versions = load(settings)
        # tokenizer.json may ask for both; Megatron calls transformers without arguments, which switches them off.
        self._reference.no_truncation()
        self._reference.no_padding()
        self._reference.encode_special_tokens = settings.split_special_tokens
        self.vocab_size: int = self._reference.get_vocab_size(with_added_tokens=True)
        self.eod_id: int | None = self._reference.token_to_id(eos_token) if eos_token else None
        self._steps: dict[str, Any] = json.loads(self._reference.to_str())
        del self._steps["model"]  # large, and the reference has it
        self._fast = self._exact_gigatoken(num_threads)
        if self._fast is not None:
            self.versions["gigatoken"] = version("gigatoken")

    @cached_property
    def token_bytes(self) -> list[bytes] | None:
        # What NFC changes (little text is not in NFC) changes the size with few exceptions, as the protocol demands.
        keeps_sizes = (self._steps["normalizer"] or {"type": "NFC"})["type"] == "NFC"
        return self._decoded_bytes if keeps_sizes and _splits_only(self._steps) else None

    def fingerprint(self) -> Fingerprint:
        split = ["split_special_tokens"] if self._settings.split_special_tokens else []
        return digest_values(self._settings.tokenizer_type, self._reference.to_str(), self.eod_id, *split)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._fast(texts) if self._fast is not None else self._encode_reference(texts)

    def token_stops(self, text: str) -> np.ndarray:
        stops = [stop for _, stop in self._whole_offsets.encode(text).offsets]  # in characters
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        sizes = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)  # in UTF-8
        byte_of_character = np.concatenate([[0], np.cumsum(sizes)])
        return np.maximum.accumulate(byte_of_character[np.array(stops, dtype=np.int64)])

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode([int(token) for token in ids], skip_special_tokens=False)

    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        if self._byte_table is not None:
            return self._byte_table.join(tokens_T, lengths_N)
        texts = self._reference.decode_batch(split_ids(tokens_T, lengths_N), skip_special_tokens=False)
        return [text.encode() for text in texts]

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return flatten_ids([encoding.ids for encoding in self._reference.encode_batch_fast(list(texts))])

    @cached_property
    def _decoded_bytes(self) -> list[bytes] | None:
        """What each id decodes to; None if that depends on its neighbours, as it does not in byte-level BPE."""
        if (self._steps["decoder"] or {}).get("type") != "ByteLevel":
            return None
        byte_of = _byte_of_character()
        vocabulary = self._reference.get_vocab(with_added_tokens=False)
        table = [b""] * (1 + max([*vocabulary.values(), *self._reference.get_added_tokens_decoder()], default=0))
        for token, index in vocabulary.items():
            table[index] = bytes(map(byte_of.__getitem__, token)) if byte_of.keys() >= set(token) else token.encode()
        for index, added in self._reference.get_added_tokens_decoder().items():
            table[index] = added.content.encode()
        return table

    @cached_property
    def _byte_table(self) -> ByteTable | None:
        return ByteTable(self._decoded_bytes) if self._decoded_bytes is not None else None

    @cached_property
    def _whole_offsets(self) -> "tokenizers.Tokenizer":
        """The reference with offsets that keep white space: byte-level post-processors otherwise take it away."""
        import tokenizers

        config = json.loads(self._reference.to_str())
        config["post_processor"] = _without_trimming(config["post_processor"])
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(config))
        tokenizer.encode_special_tokens = self._settings.split_special_tokens
        return tokenizer

    def _exact_gigatoken(self, num_threads: int) -> Encode | None:
        """The road by way of gigatoken; None where it would not be exact."""
        added = [token["content"] for token in self._steps["added_tokens"]]
        pieces = self._decoded_bytes or []
        texts = [
            *HARD_TEXTS,
            *texts_of_control_strings(added),
            *texts_of_vocabulary([piece.decode(errors="replace") for piece in pieces]),
        ]
        return exact_or_none(
            lambda: self._gigatoken(num_threads), self._encode_reference, texts, library="HuggingFace tokenizers"
        )

    def _gigatoken(self, num_threads: int) -> Encode:
        import gigatoken

        tokenizer_json = self._reference.to_str()
        if self._settings.split_special_tokens:
            config = json.loads(tokenizer_json)
            config["added_tokens"] = [token for token in config["added_tokens"] if not token["special"]]
            tokenizer_json = json.dumps(config)
        return GigatokenEngine(lambda: gigatoken.Tokenizer.from_json(tokenizer_json), num_threads).encode


def _splits_only(steps: dict[str, Any]) -> bool:
    """Whether what stands before a byte-level model cuts the text into pieces, and neither adds nor drops any."""
    pre_tokenizer = steps["pre_tokenizer"] or {}
    return all(
        (step.get("type") == "ByteLevel" and not step["add_prefix_space"])
        or (step.get("type") in {"Split", "Punctuation"} and step["behavior"] != "Removed")
        or step.get("type") == "Digits"
        for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    )


def _without_trimming(post_processor: Any) -> Any:
    """The same part of tokenizer.json with every `trim_offsets` off."""
    if isinstance(post_processor, list):
        return [_without_trimming(part) for part in post_processor]
    if isinstance(post_processor, dict):
        return {
            key: False if key == "trim_offsets" else _without_trimming(part) for key, part in post_processor.items()
        }
    return post_processor


def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, and characters from U+0100 on for the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + rank): byte for rank, byte in enumerate(others)}


def _load_gpt2(settings: TokenizerSettings) -> "tuple[tokenizers.Tokenizer, str | None, dict[str, str]]":
    """What transformers' GPT2Tokenizer makes of `vocab.json` and `merges.txt`."""
    import tokenizers

    try:
        model = tokenizers.models.BPE.from_file(str(settings.vocab_file), str(settings.merge_file))
    except Exception as error:  # the Rust side raises bare `Exception`
        raise InputError(
            f"{settings.vocab_file} and {settings.merge_file} are not the vocab.json and merges.txt of a GPT-2 "
            f"tokenizer ({error}): give those"
        ) from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    added = (_GPT2_END_OF_TEXT, *settings.special_tokens)
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in added])
    return tokenizer, _GPT2_END_OF_TEXT, {"tokenizers": version("tokenizers")}


def _load_directory(settings: TokenizerSettings) -> "tuple[tokenizers.Tokenizer, str | None, dict[str, str]]":
    """The `tokenizers` object that Megatron ends with, its end-of-sequence token (Megatron's EOD), and versions.

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
    except Exception as error:  # the Rust side raises bare `Exception`
        raise InputError(f"{directory / 'tokenizer.json'} is not a tokenizer ({error}): save it again") from None
    if not settings.special_tokens and _is_plain(tokenizer, config, directory):
        eos_token = _token_text(config.get("eos_token") or config.get("sep_token"))
        return tokenizer, eos_token, {"tokenizers": version("tokenizers")}
    logger.info("%s is not a plain fast tokenizer: loading it through transformers, as Megatron does", directory)
    versions = {name: version(name) for name in ("tokenizers", "transformers")}
    return *_load_through_transformers(directory, settings.special_tokens), versions


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): save the tokenizer again") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a JSON object: save the tokenizer again")
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
) -> "tuple[tokenizers.Tokenizer, str | None]":
    """What `megatron.core.tokenizers.text.libraries.huggingface_tokenizer` does with its default arguments."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True, trust_remote_code=False)
    except Exception as error:  # whatever a model's own class raises
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
    return tokenizer.backend_tokenizer, tokenizer.eos_token
