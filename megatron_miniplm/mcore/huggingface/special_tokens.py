"""Which token ids begin, end and pad a text, and how a model generates, carried from a source to an export.

Without them transformers takes the defaults of its config class (2 for the end, in a Llama), so that generation stops
at the wrong token and never at the right one.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.reading import read_json
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.mcore import checkpoints

GENERATION_FILE = "generation_config.json"
_CONFIG_FILE = "config.json"
_NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")

#: An id, several (of the end), or unknown.
TokenIds = int | list[int] | None


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What an exported model says about generation.

    Attributes:
        token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id` of `config.json`; None is written as null.
        generation_config: content of `generation_config.json`; None where the source has no such file.
    """

    token_ids: Mapping[str, TokenIds]
    generation_config: Mapping[str, Any] | None = None

    @classmethod
    def of_model(cls, directory: Path) -> "GenerationSettings | None":
        """What a Hugging Face model directory says; None if it is a tokenizer only.

        Raises:
            CorruptArtifactError: one of its files is no JSON object.
            InputError: an id is not one.
        """
        if not (directory / _CONFIG_FILE).is_file():
            return None
        config = read_json(directory / _CONFIG_FILE, what="configuration of a Hugging Face model")
        generation = None
        if (directory / GENERATION_FILE).is_file():
            generation = read_json(directory / GENERATION_FILE, what="generation settings of a Hugging Face model")
            _ids(generation, directory / GENERATION_FILE)
        return cls(token_ids=_ids(config, directory / _CONFIG_FILE), generation_config=generation)

    @classmethod
    def of_tokenizer(cls, directory: Path) -> "GenerationSettings":
        """What transformers' tokenizer in a directory says.

        Raises:
            InputError: transformers cannot load it.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)
        except Exception as error:  # whatever a tokenizer's own class raises
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"transformers cannot load the tokenizer in {directory} ({reason}): give another --tokenizer-model"
            ) from None
        return cls(token_ids={name: getattr(tokenizer, name) for name in _NAMES})

    @classmethod
    def recorded(cls, record: Mapping[str, Any]) -> "GenerationSettings":
        """From `as_record`."""
        return cls(token_ids=record["token_ids"], generation_config=record["generation_config"])

    def as_record(self) -> dict[str, Any]:
        """Plain values, for the args of a checkpoint."""
        generation = None if self.generation_config is None else dict(self.generation_config)
        return {"token_ids": dict(self.token_ids), "generation_config": generation}

    def with_tokenizer(self, tokenizer: "GenerationSettings") -> "GenerationSettings":
        """These settings, with the ids of a tokenizer where the two contradict each other."""
        ids = {name: _agreed(self.token_ids.get(name), tokenizer.token_ids[name]) for name in _NAMES}
        generation = self.generation_config
        if generation is not None:
            known = {name: _agreed(generation.get(name), tokenizer.token_ids[name]) for name in _NAMES}
            generation = {**generation, **{name: value for name, value in known.items() if value is not None}}
        return GenerationSettings(token_ids=ids, generation_config=generation)

    def require_below(self, vocab_size: int, place: Path) -> None:
        """Refuse ids that the model has no row for.

        Raises:
            InputError: names the token.
        """
        for name, ids in self.token_ids.items():
            if any(token >= vocab_size for token in _as_list(ids)):
                raise InputError(
                    f"{place}: {name} is {ids}, but the model's vocabulary has {vocab_size} rows: give the tokenizer "
                    "that the model was trained with"
                )

    def files(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What goes into `config.json`, and the content of `generation_config.json`."""
        ids = {name: self.token_ids.get(name) for name in _NAMES}
        generation = {name: value for name, value in ids.items() if value is not None}
        return ids, dict(generation if self.generation_config is None else self.generation_config)


UNKNOWN = GenerationSettings(token_ids=dict.fromkeys(_NAMES))


def _ids(content: Mapping[str, Any], place: Path) -> dict[str, TokenIds]:
    ids = {name: content.get(name) for name in _NAMES}
    for name, value in ids.items():
        if not all(type(token) is int for token in _as_list(value)):
            raise InputError(f"{place}: {name} is {str(value)[:80]}, expected a token id: download the file again")
    return ids


def _agreed(source: TokenIds, tokenizer: TokenIds) -> TokenIds:
    """The source's ids, unless the tokenizer's is another one."""
    if tokenizer is None:
        return source
    return source if tokenizer in _as_list(source) else tokenizer


def _as_list(ids: Any) -> list[Any]:
    if ids is None:
        return []
    return ids if isinstance(ids, list) else [ids]


@dataclass(frozen=True, kw_only=True)
class ExportTokenizer:
    """What an export says of its tokens.

    Attributes:
        directory: of a Hugging Face tokenizer, to be copied; None where none is known.
    """

    directory: Path | None
    generation: GenerationSettings

    def __str__(self) -> str:
        """For the line of result."""
        end = self.generation.token_ids.get("eos_token_id")
        if self.directory is None and end is None:
            return "tokenizer and end-of-text token unknown (--tokenizer-model names them)"
        name = "no tokenizer files" if self.directory is None else f"tokenizer of {self.directory}"
        return f"{name}, end-of-text token {'unknown' if end is None else end}"


def tokenizer_of_export(checkpoint: Path, given: Path | None, vocab_size: int) -> ExportTokenizer:
    """The tokenizer of `--tokenizer-model`, else that of the run, with the source model's ids where they are known.

    A source is what `convert-checkpoint --load-hf` recorded, else the model directory in which the tokenizer lies. Its
    ids and its generation_config.json are kept as they are, but for those that a tokenizer that was given contradicts.

    Args:
        checkpoint: directory of an iteration.
        given: directory of a Hugging Face tokenizer.
        vocab_size: rows of the model that are real.

    Raises:
        InputError: the tokenizer cannot be read, or has an id beyond the vocabulary.
    """
    recorded = checkpoints.recorded_args(checkpoint) or argparse.Namespace()
    directory = given or _directory_of_run(recorded)
    record = getattr(recorded, checkpoints.GENERATION, None)
    source = GenerationSettings.recorded(record) if record else None
    if source is None and directory is not None:
        source = GenerationSettings.of_model(directory)
    if directory is None:
        return ExportTokenizer(directory=None, generation=source or _end_of_run(recorded))
    if source is None or given is not None:
        tokenizer = GenerationSettings.of_tokenizer(directory)
        tokenizer.require_below(vocab_size, directory)
        source = (source or UNKNOWN).with_tokenizer(tokenizer)
    return ExportTokenizer(directory=directory, generation=source)


def _directory_of_run(recorded: argparse.Namespace) -> Path | None:
    """The Hugging Face tokenizer that a run used, if it is still there."""
    path = getattr(recorded, "tokenizer_model", None)
    if getattr(recorded, "tokenizer_type", None) != "HuggingFaceTokenizer" or not path:
        return None
    return Path(path) if Path(path).is_dir() else None


def _end_of_run(recorded: argparse.Namespace) -> GenerationSettings:
    """The end-of-document token of a run's tokenizer of another kind, if its files are still there."""

    def path(name: str) -> Path | None:
        value = getattr(recorded, name, None)
        return Path(value) if value else None

    kind = getattr(recorded, "tokenizer_type", None)
    if kind in (None, "NullTokenizer", "HuggingFaceTokenizer"):
        return UNKNOWN
    settings = TokenizerSettings(
        tokenizer_type=kind,
        tokenizer_model=path("tokenizer_model"),
        vocab_file=path("vocab_file"),
        merge_file=path("merge_file"),
    )
    try:
        encoder = make_encoder(settings, num_threads=1)
    except (MiniPLMError, OSError):
        return UNKNOWN
    return GenerationSettings(token_ids={**UNKNOWN.token_ids, "eos_token_id": encoder.eod_id})
