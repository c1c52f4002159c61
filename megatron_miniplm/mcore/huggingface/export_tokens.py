"""Which tokenizer and which ids of special tokens go with an exported checkpoint."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.corpus.tokenization.tokenizers import TokenizerSettings, make_encoder
from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.mcore import models
from megatron_miniplm.mcore.huggingface.special_tokens import UNKNOWN, GenerationSettings


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
    recorded = models.recorded_args(checkpoint) or argparse.Namespace()
    directory = given or _directory_of_run(recorded)
    record = getattr(recorded, models.GENERATION, None)
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
