"""Cross-family distillation: what was selected in the teacher's tokenizer becomes a corpus in the student's.

    prefix ──► sidecar ──► text files ──► pieces of text ──┐                     (from_text: exact)
       └──► ids ──► decoded text, split at documents' ends ┴──► ids ──► corpus   (from_tokens: without the text)

One sequence gives one sequence, in the same order; one that has no token in the new tokenizer is left out and counted.
Every sequence is a document of its own.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts import Manifest, atomic_output
from megatron_miniplm.artifacts.data_args import DATA_ARGS, expand_prefixes, write_data_args
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.manifest import ArtifactInput, checksum_of, input_of
from megatron_miniplm.corpus.retokenization.excerpts import Excerpts
from megatron_miniplm.corpus.retokenization.from_text import ExcerptEncoder, convert_text
from megatron_miniplm.corpus.retokenization.from_tokens import Run, RunRecoder, convert_tokens
from megatron_miniplm.corpus.retokenization.prefixes import ROUND_TRIP_SUFFIX, ConvertedOutput, Origin
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.corpus.workers import WorkerPool
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.existing import existing_corpus
from megatron_miniplm.indexed.layout import optimal_dtype
from megatron_miniplm.indexed.prefix_files import prefix_lock
from megatron_miniplm.runtime.progress import Progress

TEXT, TOKENS = "text", "tokens"


@dataclass(frozen=True, kw_only=True)
class ConversionSettings:
    """What shapes a conversion.

    Attributes:
        tokenizer: of the corpus that is made.
        converted_from: `TEXT`, the files that the corpus was made from, or `TOKENS`, its decoded ids.
        source_tokenizer_type, source_tokenizer_model: of `TOKENS`; None is what the manifest says.
    """

    tokenizer: TokenizerSettings
    converted_from: str = TEXT
    source_tokenizer_type: str | None = None
    source_tokenizer_model: Path | None = None


def convert_prefixes(
    prefixes: Sequence[Path], output_dir: Path, settings: ConversionSettings, *, num_workers: int
) -> dict[Path, Manifest]:
    """Convert every prefix into one of the same name in `output_dir`, and name them in its `data_args.txt`.

    Args:
        num_workers: processes; the output does not depend on it.

    Returns:
        The manifest of every output prefix; those that were finished already are left as they are.

    Raises:
        MiniPLMError: a prefix, its text or a tokenizer cannot be used, or something else lies in `output_dir`; prefixes
            that are finished stay.
    """
    outputs = _output_prefixes(prefixes, output_dir)
    encoder = make_encoder(settings.tokenizer, num_threads=1)
    sources: dict[TokenizerSettings, TextEncoder] = {}
    conversions = {
        output: _Conversion(Origin(prefix), output, settings, encoder, sources)
        for prefix, output in zip(prefixes, outputs, strict=True)
    }
    existing = {output: conversion.existing() for output, conversion in conversions.items()}
    if all(existing.values()):
        num_workers = 1  # nothing to do
    with WorkerPool(_Work(encoder, sources), num_workers) as pool, sole_writer(output_dir):
        _refuse_other_prefixes(outputs, output_dir)
        manifests = {output: existing[output] or conversion.run(pool) for output, conversion in conversions.items()}
        weighted = [(manifest.counts["num_tokens"], output) for output, manifest in manifests.items()]
        write_data_args(output_dir, weighted)
    return manifests


def _output_prefixes(prefixes: Sequence[Path], output_dir: Path) -> list[Path]:
    outputs = [output_dir / prefix.name for prefix in prefixes]
    if twice := sorted(output.name for output, count in Counter(outputs).items() if count > 1):
        raise InputError(f"two of the inputs are called {twice[0]}: convert them into two directories")
    _refuse_other_prefixes(outputs, output_dir)
    return outputs


def _refuse_other_prefixes(outputs: Sequence[Path], output_dir: Path) -> None:
    if (output_dir / DATA_ARGS).exists():
        others = set(expand_prefixes([output_dir])) - {output.absolute() for output in outputs}
        if others:
            raise InputError(
                f"{output_dir / DATA_ARGS} names {min(others)}, which this command does not write: give another "
                "--output, or delete it together with its index caches in any --data-cache-path"
            )


class _Work:
    """What a worker does, whether it is given text or tokens; can be sent to another process."""

    def __init__(self, encoder: TextEncoder, sources: dict[TokenizerSettings, TextEncoder]) -> None:
        self._arguments = encoder, sources
        self._excerpts = ExcerptEncoder(encoder)
        self._runs = RunRecoder(encoder, sources)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Work, self._arguments

    def __call__(self, work: Excerpts | Run) -> Any:
        return self._excerpts.encode(work) if isinstance(work, Excerpts) else self._runs.recode(work)


class _Conversion:
    """One prefix: what it becomes, whether that is there, and the writing of it.

    Args:
        sources: the encoders of the inputs' tokenizers that were loaded so far; gets that of this one.
    """

    def __init__(
        self,
        origin: Origin,
        output: Path,
        settings: ConversionSettings,
        encoder: TextEncoder,
        sources: dict[TokenizerSettings, TextEncoder],
    ) -> None:
        self._origin = origin
        self._output = output
        self._encoder = encoder
        self._source_tokenizer: TokenizerSettings | None = None
        inputs = [*origin.inputs(output.parent), *self._tokenizer_inputs("tokenizer", settings.tokenizer, encoder)]
        versions = encoder.versions
        if settings.converted_from == TOKENS:
            source = origin.tokenizer(settings.source_tokenizer_type, settings.source_tokenizer_model)
            if source.settings not in sources:
                sources[source.settings] = make_encoder(source.settings, num_threads=1)
            source_encoder = sources[source.settings]
            source.check(source_encoder, origin.prefix)
            inputs += self._tokenizer_inputs("source tokenizer", source.settings, source_encoder)
            versions = source_encoder.versions | versions
            self._source_tokenizer = source.settings
        if origin.kept_settings.get("append_eod") and encoder.eod_id is None:
            raise InputError(
                f"the documents of {origin.prefix} end with an end-of-document token, and the new tokenizer names "
                "none: set eos_token in its tokenizer_config.json (SentencePiece: train with an eos_id)"
            )
        self._inputs = tuple(inputs)
        self._versions = versions
        self._settings = {
            **origin.kept_settings,
            "converted_from": settings.converted_from,
            "vocab_size": encoder.vocab_size,
            "eod_id": encoder.eod_id,
            **settings.tokenizer.recorded(),
        }

    def _tokenizer_inputs(self, role: str, tokenizer: TokenizerSettings, encoder: TextEncoder) -> list[ArtifactInput]:
        directory = self._output.parent
        return [input_of(role, path, encoder.fingerprint(), relative_to=directory) for path in tokenizer.files]

    def existing(self) -> Manifest | None:
        """The manifest, if the output is finished.

        Raises:
            InputError: something else lies there.
        """
        return existing_corpus(
            self._output,
            settings=self._settings,
            versions=self._versions,
            inputs=self._inputs,
            output_flag="--output",
        )

    def run(self, pool: WorkerPool[Any, Any]) -> Manifest:
        """Write every sequence beside its target, and publish when all are written."""
        with ExitStack() as stack:
            stack.enter_context(prefix_lock(self._output))
            if (existing := self.existing()) is not None:  # another process was first
                return existing
            token_dtype = optimal_dtype(self._encoder.vocab_size)
            output = ConvertedOutput(stack, self._output, token_dtype, self._origin.sidecar)
            with Progress(len(self._origin.corpus), " sequences") as progress:
                counts, files = self._convert(output, pool, progress)
            files = {**output.close(), **files}
            manifest = Manifest(
                kind="corpus",
                fingerprint=IndexedCorpus.open(self._output).fingerprint(),
                counts=output.counts | counts,
                settings=self._settings,
                versions=self._versions,
                inputs=self._inputs,
                files=files,
            )
            manifest.write(self._output)
        return manifest

    def _convert(
        self, output: ConvertedOutput, pool: WorkerPool[Any, Any], progress: Progress
    ) -> tuple[dict[str, int], dict[str, Any]]:
        """Append all sequences; returns counts, and the `files` entries of other files than the corpus's."""
        if self._source_tokenizer is None:
            return convert_text(self._origin, output, pool, progress), {}
        path = self._output.with_name(self._output.name + ROUND_TRIP_SUFFIX)
        with atomic_output(path) as stream:
            counts = convert_tokens(self._origin, self._source_tokenizer, output, stream, pool, progress)
        return counts, {path.name: checksum_of(path)}
