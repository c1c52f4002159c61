"""HuggingFace fast tokenizers and GPT-2's two files, with the ids that Megatron's classes give, as fast as is exact.

The reference is the `tokenizers` library, on which transformers and with it Megatron stand. gigatoken encodes
byte-level BPE some twenty times faster; it takes over only after it has equalled the reference on hard texts when the
tokenizer is loaded.
"""

import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, wraps
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Concatenate

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.corpus.tokenization.gigatoken_engine import (
    HARD_TEXTS,
    Encode,
    GigatokenEngine,
    exact_or_none,
    named_in_rust_errors,
    routed,
    texts_of_control_strings,
    texts_of_vocabulary,
)
from megatron_miniplm.corpus.tokenization.huggingface_files import load_directory, load_gpt2, needs_reference
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.token_bytes import (
    ByteTable,
    bytes_of_piece,
    flatten_ids,
    is_byte_level,
    keeps_text,
    split_ids,
    wrap_ids,
)
from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

#: Ids beyond it are a mistake: tables by id would fill the memory.
MAX_VOCABULARY = 1 << 22
_MODEL_OPTIONS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def _named_in_errors[**Arguments, Result](
    method: Callable[Concatenate["HuggingFaceEncoder", Arguments], Result],
) -> Callable[Concatenate["HuggingFaceEncoder", Arguments], Result]:
    """A method in which errors of the tokenizers library name the files."""

    @wraps(method)
    def call(self: "HuggingFaceEncoder", *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with named_in_rust_errors(_place(self._settings)):
            return method(self, *args, **kwargs)

    return call


class HuggingFaceEncoder:
    """A fast tokenizer, encoded by gigatoken where that is exact and by `tokenizers` elsewhere.

    Attributes:
        changed_by: see `LoadedTokenizer`.
    """

    def __init__(self, settings: TokenizerSettings, num_threads: int) -> None:
        with named_in_rust_errors(_place(settings)):
            self._load(settings, num_threads)

    def _load(self, settings: TokenizerSettings, num_threads: int) -> None:
        load = load_gpt2 if settings.tokenizer_type == "GPT2BPETokenizer" else load_directory
        self._settings = settings
        self._num_threads = num_threads
        loaded = load(settings)
        self._reference, eos_token, self.versions = loaded.tokenizer, loaded.eos_token, loaded.versions
        self.changed_by = loaded.changed_by
        # tokenizer.json may ask for both; Megatron calls transformers without arguments, which switches them off.
        self._reference.no_truncation()
        self._reference.no_padding()
        self._reference.encode_special_tokens = settings.split_special_tokens
        self.vocab_size: int = self._reference.get_vocab_size(with_added_tokens=True)
        self.eod_id: int | None = self._reference.token_to_id(eos_token) if eos_token else None
        self._steps: dict[str, Any] = json.loads(self._reference.to_str())
        model = self._steps.pop("model")  # large, and the reference has it
        self._model_options: dict[str, Any] = {name: model.get(name) for name in _MODEL_OPTIONS}
        _refuse_dropout(settings, self._model_options)
        _refuse_large_ids(settings, self._reference)
        self._fast = self._exact_gigatoken()
        if self._fast is not None:
            self.versions["gigatoken"] = version("gigatoken")

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which need not load through transformers, nor check gigatoken, again."""
        made_again = {"_fast", "token_bytes", "text_prefix", "_decoded_bytes", "_byte_table", "_whole_offsets"}
        return {name: value for name, value in self.__dict__.items() if name not in made_again}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._reference.encode_special_tokens = self._settings.split_special_tokens  # which its own state leaves out
        self._fast = self._gigatoken() if "gigatoken" in self.versions else None

    @cached_property
    @_named_in_errors
    def token_bytes(self) -> list[bytes] | None:
        return self._decoded_bytes if keeps_text(self._steps) else None

    @cached_property
    @_named_in_errors
    def text_prefix(self) -> bytes:
        """SentencePiece's space where the tokenizer writes one, behind the tokens that a template puts first."""
        table = self._decoded_bytes
        return b"" if table is None else b"".join(table[index] for index in self._reference.encode("a").ids)[:-1]

    @_named_in_errors
    def fingerprint(self) -> Fingerprint:
        split = ["split_special_tokens"] if self._settings.split_special_tokens else []
        return digest_values(self._settings.tokenizer_type, _content(self._reference), self.eod_id, *split)

    @_named_in_errors
    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._fast(texts) if self._fast is not None else self._encode_reference(texts)

    @_named_in_errors
    def token_stops(self, text: str) -> np.ndarray:
        stops = [stop for _, stop in self._whole_offsets.encode(text).offsets]  # in characters
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        sizes = 1 + (code_points >= 0x80) + (code_points >= 0x800) + (code_points >= 0x10000)  # in UTF-8
        byte_of_character = np.concatenate([[0], np.cumsum(sizes)])
        return np.maximum.accumulate(byte_of_character[np.array(stops, dtype=np.int64)])

    @_named_in_errors
    def decode(self, ids: Sequence[int]) -> str:
        return self._reference.decode([int(token) for token in ids], skip_special_tokens=False)

    @_named_in_errors
    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        if self._byte_table is not None and is_byte_level(self._steps):
            return self._byte_table.join(tokens_T, lengths_N)
        if self._byte_table is not None and self.text_prefix in (b"", b" "):
            texts = self._byte_table.join(tokens_T, lengths_N)
            return [text.removeprefix(self.text_prefix) for text in texts]
        decoded = self._reference.decode_batch(split_ids(tokens_T, lengths_N), skip_special_tokens=False)
        return [text.encode() for text in decoded]

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        with named_in_rust_errors(_place(self._settings)):
            return flatten_ids([encoding.ids for encoding in self._reference.encode_batch_fast(list(texts))])

    @cached_property
    def _decoded_bytes(self) -> list[bytes] | None:
        """What each id decodes to; None if that depends on its neighbours, as it does not in BPE over bytes."""
        if (bytes_of := bytes_of_piece(self._steps["decoder"] or {})) is None:
            return None
        vocabulary = self._reference.get_vocab(with_added_tokens=False)
        table = [b""] * (1 + max([*vocabulary.values(), *self._reference.get_added_tokens_decoder()], default=0))
        for token, index in vocabulary.items():
            table[index] = bytes_of(token)
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

    def _exact_gigatoken(self) -> Encode | None:
        """The road by way of gigatoken; None where it would not be exact."""
        added = [token["content"] for token in self._steps["added_tokens"]]
        pieces = self._decoded_bytes or []
        texts = [
            *HARD_TEXTS,
            *texts_of_control_strings(added),
            *texts_of_vocabulary([piece.decode(errors="replace") for piece in pieces]),
        ]
        return exact_or_none(self._gigatoken, self._encode_reference, texts, library="HuggingFace tokenizers")

    def _gigatoken(self) -> Encode:
        import gigatoken

        tokenizer_json = self._reference.to_str()
        if self._settings.split_special_tokens:
            config = json.loads(tokenizer_json)
            config["added_tokens"] = [token for token in config["added_tokens"] if not token["special"]]
            tokenizer_json = json.dumps(config)
        if unsupported := _unsupported_by_gigatoken(self._steps, self._model_options):
            raise ValueError(unsupported)
        engine = GigatokenEngine(lambda: gigatoken.Tokenizer.from_json(tokenizer_json), self._num_threads)
        fast = self._with_template(engine)
        normalizer = self._reference.normalizer
        needs = needs_reference(
            self._steps,
            normalizer.normalize_str if normalizer is not None else str,
            split_special_tokens=self._settings.split_special_tokens,
        )
        return fast if needs is None else routed(fast, self._encode_reference, needs)

    def _with_template(self, engine: GigatokenEngine) -> Encode:
        """The engine, with the ids that a template puts around every text, which gigatoken leaves out."""
        around, inside = self._reference.encode("a").ids, engine.encode(["a"])[0].tolist()
        start = next((i for i in range(len(around)) if around[i : i + len(inside)] == inside), 0)
        if around == inside:
            return engine.encode
        before, behind = around[:start], around[start + len(inside) :]
        return lambda texts: wrap_ids(*engine.encode(texts), before, behind)


def _place(settings: TokenizerSettings) -> str:
    return " and ".join(map(str, settings.files))


def _refuse_large_ids(settings: TokenizerSettings, tokenizer: "tokenizers.Tokenizer") -> None:
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if highest >= MAX_VOCABULARY:
        raise InputError(
            f"{_place(settings)} has the token id {highest:,}, expected ids below {MAX_VOCABULARY:,}: number the "
            "tokens without gaps"
        )


def _refuse_dropout(settings: TokenizerSettings, model_options: dict[str, Any]) -> None:
    if model_options["dropout"]:
        raise InputError(
            f"{_place(settings)} sets BPE dropout {model_options['dropout']}, which gives the same text other ids each "
            'time: set "dropout": null in tokenizer.json'
        )


def _unsupported_by_gigatoken(steps: dict[str, Any], model_options: dict[str, Any]) -> str | None:
    """What the tokenizer asks for and gigatoken silently leaves out; None if nothing."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model_options[name]:
            return name
    pre_tokenizer = steps["pre_tokenizer"] or {}
    if pre_tokenizer.get("type") == "ByteLevel" and not pre_tokenizer.get("use_regex", True):
        return "a byte-level pre-tokenizer without its regular expression"
    return None


def _content(tokenizer: Any) -> str:
    """The serialised tokenizer, without a template that adds nothing: transformers puts one in beside some models."""
    text = tokenizer.to_str()
    config = json.loads(text)
    template = config["post_processor"]
    if template is None or template["type"] != "TemplateProcessing" or template["special_tokens"]:
        return text
    if any("SpecialToken" in part for part in (*template["single"], *template["pair"])):
        return text
    return type(tokenizer).from_str(json.dumps({**config, "post_processor": None})).to_str()


def _without_trimming(post_processor: Any) -> Any:
    """The same part of tokenizer.json with every `trim_offsets` off."""
    if isinstance(post_processor, list):
        return [_without_trimming(part) for part in post_processor]
    if isinstance(post_processor, dict):
        return {
            key: False if key == "trim_offsets" else _without_trimming(part) for key, part in post_processor.items()
        }
    return post_processor
