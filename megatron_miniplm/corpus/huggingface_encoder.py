"""HuggingFace fast tokenizers, with the ids that Megatron's HuggingFaceTokenizer gives, as fast as is exact.

The reference is the `tokenizers` library, on which transformers and with it Megatron stand. gigatoken encodes
byte-level BPE some twenty times faster; it takes over only after it has equalled the reference on hard texts when the
tokenizer is loaded.
"""

import json
import logging
from collections.abc import Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

ENGINE_LIFE_CHARACTERS = 1 << 30  # gigatoken's cache takes up to about a byte a character of text without repetition

#: What a fast engine must encode as the reference does, besides the tokenizer's own added tokens.
HARD_TEXTS = (
    "",
    " ",
    "  leading, trailing and   inner runs  \n\n\n\t\t \r\n x\u00a0y\u2003z\u200b ",
    "It's we'll they'VE I'M don't 'tis naïve café cafe\u0301 ﬁne Ａｂｃ ½ Ⅷ ſ İ ß ẞ",
    "0 12 345 6789 12345678901234567890 3.14159 1e-9 0xDEADBEEF ١٢٣ 五 1,000,000",
    "def f(x: int=0) -> str:\n    return f'{x!r:>10}'  # tab:\t\\n\n\n\tif (a!=b)&&c||~d {};\n",
    "Привет мир. Γειά σου Κόσμε. 你好，世界！こんにちは。안녕하세요 नमस्ते สวัสดี שלום العربيّة ትግርኛ ქართული",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇺🇳 \U0001f9ff\U000e0067 \U0010ffff \ufeff\ufffd\u2028\u2029\u0085\x00\x01\x1f\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!????----====____....''''\"\"\"\"",
    "<s></s><unk><pad><|endoftext|><|im_start|>[INST] <0x0A> ▁word ĠGPT Ċ",
)

_NAMED_TOKENS = frozenset({"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
#: Keys of tokenizer_config.json under which transformers takes tokenizer.json as it stands.
_PLAIN_KEYS = _NAMED_TOKENS | {"tokenizer_class", "model_max_length", "clean_up_tokenization_spaces", "backend"}
_PLAIN_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})
#: Further files that change what transformers makes of tokenizer.json.
_OVERRIDING_FILES = ("config.json", "special_tokens_map.json", "added_tokens.json")


class HuggingFaceEncoder:
    """A HuggingFace fast tokenizer, encoded by gigatoken where that is exact and by `tokenizers` elsewhere."""

    def __init__(self, model_path: Path) -> None:
        directory = model_path.parent if model_path.is_file() else model_path
        if not (directory / "tokenizer.json").is_file():
            raise InputError(f"{directory} has no tokenizer.json: give the directory of a HuggingFace fast tokenizer")
        self._reference, eos_token, self.versions = _load_reference(directory)
        # tokenizer.json may ask for both; Megatron calls transformers without arguments, which switches them off.
        self._reference.no_truncation()
        self._reference.no_padding()
        self.vocab_size: int = self._reference.get_vocab_size(with_added_tokens=True)
        self.eod_id: int | None = self._reference.token_to_id(eos_token) if eos_token else None
        self._fast = _exact_gigatoken(self._reference)
        if self._fast is not None:
            self.versions["gigatoken"] = version("gigatoken")

    def fingerprint(self) -> Fingerprint:
        return digest_values("HuggingFaceTokenizer", self._reference.to_str(), self.eod_id)

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._fast.encode(texts) if self._fast is not None else _encode_reference(self._reference, texts)

    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode([int(token) for token in ids], skip_special_tokens=False)


def _load_reference(directory: Path) -> "tuple[tokenizers.Tokenizer, str | None, dict[str, str]]":
    """The `tokenizers` object that Megatron ends with, its end-of-sequence token (Megatron's EOD), and versions.

    Megatron loads through transformers, which may rebuild or extend what tokenizer.json says. That import takes
    seconds and brings torch along, so it is done only where it could make a difference.
    """
    import tokenizers

    config = _read_config(directory / "tokenizer_config.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the Rust side raises bare `Exception`
        raise InputError(f"{directory / 'tokenizer.json'} is not a tokenizer ({error}): save it again") from None
    if _is_plain(tokenizer, config, directory):
        eos_token = _token_text(config.get("eos_token") or config.get("sep_token"))
        return tokenizer, eos_token, {"tokenizers": version("tokenizers")}
    logger.info("%s is not a plain fast tokenizer: loading it through transformers, as Megatron does", directory)
    versions = {name: version(name) for name in ("tokenizers", "transformers")}
    return *_load_through_transformers(directory), versions


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


def _load_through_transformers(directory: Path) -> "tuple[tokenizers.Tokenizer, str | None]":
    """What `megatron.core.tokenizers.text.libraries.huggingface_tokenizer` does with its default arguments."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True, trust_remote_code=False)
    except Exception as error:  # whatever a model's own class raises
        raise InputError(f"transformers cannot load the tokenizer in {directory} ({error}): save it again") from None
    if not tokenizer.is_fast:
        raise InputError(f"{directory} holds a tokenizer written in Python: save it as a fast one (tokenizer.json)")
    named: dict[str, Any] = {}
    for name, twin in (("sep_token", "eos_token"), ("cls_token", "bos_token")):
        if getattr(tokenizer, name) is None and getattr(tokenizer, twin):
            named[name] = getattr(tokenizer, twin)
        elif getattr(tokenizer, twin) is None and getattr(tokenizer, name):
            named[twin] = getattr(tokenizer, name)
    tokenizer.add_special_tokens(named)
    return tokenizer.backend_tokenizer, tokenizer.eos_token


class _Gigatoken:
    """gigatoken's engine, made anew now and then: its cache keeps every distinct word that it has met."""

    def __init__(self, tokenizer_json: str) -> None:
        self._json = tokenizer_json
        self._make()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if self._encoded_characters >= ENGINE_LIFE_CHARACTERS:
            self._make()
        self._encoded_characters += sum(map(len, texts))
        layout: Any = self._engine.encode_batch(list(texts)).layout  # awkward's: N + 1 offsets into flat ids
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _make(self) -> None:
        import gigatoken

        self._engine = gigatoken.Tokenizer.from_json(self._json)
        self._encoded_characters = 0


def _exact_gigatoken(reference: "tokenizers.Tokenizer") -> _Gigatoken | None:
    """gigatoken's engine for the tokenizer, or None where it cannot load it or differs on `HARD_TEXTS`."""
    added = [token.content for token in reference.get_added_tokens_decoder().values()]
    texts = [*HARD_TEXTS, " ".join(added), "".join(added), *(f"a{token}b {token}  {token}\n" for token in added)]
    expected_T, expected_lengths_N = _encode_reference(reference, texts)
    try:
        fast = _Gigatoken(reference.to_str())
        found_T, found_lengths_N = fast.encode(texts)
    except Exception as error:  # its Rust side raises many kinds for what it does not support
        logger.info("encoding with the slower HuggingFace tokenizers: gigatoken does not support this one (%s)", error)
        return None
    if np.array_equal(expected_T, found_T) and np.array_equal(expected_lengths_N, found_lengths_N):
        return fast
    logger.info("encoding with the slower HuggingFace tokenizers: gigatoken gives other ids for this one")
    return None


def _encode_reference(reference: "tokenizers.Tokenizer", texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return flatten_ids([encoding.ids for encoding in reference.encode_batch_fast(list(texts))])


def flatten_ids(ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """One list of ids a text, as flat ids and lengths."""
    lengths_N = np.array([len(sequence) for sequence in ids], dtype=np.int64)
    tokens_T = np.fromiter(chain.from_iterable(ids), np.uint32, count=int(lengths_N.sum()))
    return tokens_T, lengths_N
