"""The verb of this package: text and a tokenizer in; for each key and shard a `.bin/.idx`, sidecar and manifest out.

In document mode the bytes are those of Megatron's `tools/preprocess_data.py`: one document is one sequence,
`--append-eod` gives every document that has tokens one more, and a document without tokens is a document boundary
without a sequence.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from megatron_miniplm.artifacts import Fingerprint, Manifest, digest_values
from megatron_miniplm.artifacts.fingerprint import digest_file_samples
from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of
from megatron_miniplm.corpus.encoding import (
    ChunkSettings,
    EncodedUnit,
    EncodingSettings,
    KeyOutput,
    UnitEncoder,
)
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import LineCounter, Rejected, UnitReader
from megatron_miniplm.corpus.sentences import SentenceModel
from megatron_miniplm.corpus.sources import UNIT_BYTES, Source, expand_inputs, shard_spans, whole_span
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.corpus.units import MAX_LINE_BYTES, Unit, units_of
from megatron_miniplm.corpus.workers import WorkerPool
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.existing import existing_corpus
from megatron_miniplm.indexed.layout import optimal_dtype
from megatron_miniplm.indexed.prefix_files import prefix_lock
from megatron_miniplm.runtime.progress import Progress

logger = logging.getLogger(__name__)

DOCUMENT, CHUNK = "document", "chunk"
_WORTH_WORKERS_BYTES = 4 << 20  # on disk: for less, starting workers takes longer than the work


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Which part of the inputs: shard `index` of `count`, from 0.

    Attributes:
        by_files: cut between files, by their number, so that a shard depends on no other's files; else by bytes.
    """

    index: int = 0
    count: int = 1
    by_files: bool = False

    @property
    def suffix(self) -> str:
        return "" if self.count == 1 else f"_{self.index:05d}-of-{self.count:05d}"


WHOLE = Shard()


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What shapes a corpus.

    Attributes:
        inputs: files, directories and globs, in the order in which their documents are written.
        output_prefix: the pair of a key is `<output_prefix>_<key>_document`, or `_chunk`.
        json_keys: the keys whose values are text.
        id_key, domain_key: see `readers.Fields`.
        append_eod: whether every document ends with the tokenizer's end-of-document token; in chunks it always does.
        chunk_length: None for one sequence a document, else the most tokens of a chunk.
        sentence_model: directory of a Punkt model; None trains one on the first texts of the inputs.
        skip_bad_lines: list them in `<prefix>.rejected.jsonl` and go on, where False stops at the first.
        max_line_bytes: a longer line is a bad one; it is never held in memory.
    """

    inputs: tuple[str | Path, ...]
    output_prefix: Path
    json_keys: tuple[str, ...]
    tokenizer: TokenizerSettings
    append_eod: bool = False
    id_key: str | None = None
    domain_key: str | None = None
    chunk_length: int | None = None
    sentence_model: Path | None = None
    skip_bad_lines: bool = False
    max_line_bytes: int = MAX_LINE_BYTES

    def prefix(self, key: str, shard: Shard = WHOLE) -> Path:
        shape = DOCUMENT if self.chunk_length is None else CHUNK
        return self.output_prefix.with_name(f"{self.output_prefix.name}_{key}_{shape}{shard.suffix}")

    @property
    def fields(self) -> Fields:
        return Fields(text_keys=self.json_keys, id_key=self.id_key, domain_key=self.domain_key)


def build_corpus(
    settings: BuildSettings, *, num_workers: int, shards: Sequence[Shard] = (WHOLE,)
) -> dict[Path, Manifest]:
    """Encode the inputs shard by shard; what is finished already is recognised and left as it is.

    Args:
        num_workers: processes; the output does not depend on it.

    Returns:
        The manifest of every prefix, by shard and key.

    Raises:
        InputError: an input, the tokenizer or the output prefix cannot be used; finished shards stay.
    """
    _check_settings(settings)
    sources = expand_inputs(settings.inputs)
    encoder = make_encoder(settings.tokenizer, num_threads=1)
    if (settings.append_eod or settings.chunk_length is not None) and encoder.eod_id is None:
        place = " and ".join(map(str, settings.tokenizer.files)) or settings.tokenizer.tokenizer_type
        flag = "--append-eod" if settings.chunk_length is None else "--sequence chunk"
        raise InputError(
            f"{flag} needs an end-of-document token, and {place} names none: set eos_token in "
            f"its tokenizer_config.json (SentencePiece: train with an eos_id), or leave out {flag}"
        )
    encoding = EncodingSettings(
        fields=settings.fields,
        max_line_bytes=settings.max_line_bytes,
        append_eod=settings.append_eod or settings.chunk_length is not None,
        chunks=_chunk_settings(settings, sources),
    )
    manifests: dict[Path, Manifest] = {}
    tokenizer_fingerprint, digest = encoder.fingerprint(), cache(digest_file_samples)  # once for all shards
    builds = [
        _ShardBuild(settings, encoding, encoder, sources, shard, tokenizer_fingerprint, digest) for shard in shards
    ]
    unfinished = []
    for build in builds:
        manifests |= (found := build.existing()) or {}
        unfinished += [build] if found is None else []
    if sum(build.size_bytes for build in unfinished) <= _WORTH_WORKERS_BYTES:
        num_workers = 1
    with WorkerPool(UnitEncoder(encoding, encoder).encode, num_workers) as pool:
        for build in unfinished:
            manifests |= build.run(pool)
    return {prefix: manifests[prefix] for build in builds for prefix in build.prefixes}


def _check_settings(settings: BuildSettings) -> None:
    for key in settings.json_keys:
        if not key or "/" in key or "\0" in key:
            raise InputError(f"--json-keys {key!r} cannot be part of a file name: rename the key in the text")
    if settings.max_line_bytes < 1:
        raise InputError(f"--max-line-bytes {settings.max_line_bytes} leaves no line: give at least 1")


def _chunk_settings(settings: BuildSettings, sources: Sequence[Source]) -> ChunkSettings | None:
    """With the given sentence model, or one trained on the first texts of all inputs, whatever the shard."""
    if settings.chunk_length is None:
        return None
    if settings.chunk_length < 1:
        raise InputError(f"--chunk-length {settings.chunk_length} has no room for a token: give at least 1")
    if settings.sentence_model is not None:
        model = SentenceModel.load(settings.sentence_model)
    else:
        logger.info("training a sentence model on the first texts (--sentence-model gives one)")
        model = SentenceModel.train(_first_texts(settings, sources))
    return ChunkSettings(length=settings.chunk_length, sentence_model=model)


def _first_texts(settings: BuildSettings, sources: Sequence[Source]) -> Iterator[str]:
    """Texts in order; bad lines are left to the build to judge."""
    reader = UnitReader(settings.fields, settings.max_line_bytes)
    for source in sources:
        for unit in units_of(whole_span(source), settings.fields, settings.max_line_bytes):
            for texts in reader.read(unit).texts.values():
                yield from texts


class _ShardBuild:
    """One shard: what it will be, whether it is there, and the writing of it."""

    def __init__(
        self,
        settings: BuildSettings,
        encoding: EncodingSettings,
        encoder: TextEncoder,
        sources: Sequence[Source],
        shard: Shard,
        tokenizer_fingerprint: Fingerprint,
        digest: Callable[[Path], Fingerprint],
    ) -> None:
        self._settings = settings
        self._encoder = encoder
        self._spans = shard_spans(sources, shard.index, shard.count, by_files=shard.by_files)
        self._prefixes = {key: settings.prefix(key, shard) for key in settings.json_keys}
        self._directory = settings.output_prefix.parent
        recorded = {
            "sequence": DOCUMENT if settings.chunk_length is None else CHUNK,
            "append_eod": encoding.append_eod,
            "vocab_size": encoder.vocab_size,
            "eod_id": encoder.eod_id,
            **settings.tokenizer.recorded(),
        }
        if encoding.chunks is not None:
            recorded |= {
                "chunk_length": encoding.chunks.length,
                "sentence_model": encoding.chunks.sentence_model.fingerprint(),
            }
        if settings.skip_bad_lines:
            recorded["on_bad_line"] = "skip"
        if settings.max_line_bytes != MAX_LINE_BYTES:
            recorded["max_line_bytes"] = settings.max_line_bytes
        if shard.count > 1:
            # What the cuts depend on: shards that were cut otherwise do not belong together.
            cut_by = [(source.path.name, 0 if shard.by_files else source.size_bytes) for source in sources]
            recorded |= {
                "shard_index": shard.index,
                "num_shards": shard.count,
                "sharded_inputs": digest_values(0 if shard.by_files else UNIT_BYTES, cut_by),
            }
        labels = {"id_key": settings.id_key, "domain_key": settings.domain_key}
        self._recorded = recorded | {name: key for name, key in labels.items() if key is not None}
        used = [span.source for span in self._spans] if shard.count > 1 else sources
        self._inputs = (
            *(self._input("text", source.path, digest(source.path)) for source in used),
            *(self._input("tokenizer", path, tokenizer_fingerprint) for path in settings.tokenizer.files),
        )

    @property
    def prefixes(self) -> list[Path]:
        return list(self._prefixes.values())

    @property
    def size_bytes(self) -> int:
        """Of the inputs on disk."""
        return sum(span.size_bytes for span in self._spans)

    def _input(self, role: str, path: Path, fingerprint: Fingerprint) -> ArtifactInput:
        return input_of(role, path, fingerprint, relative_to=self._directory)

    def _recorded_for(self, key: str) -> dict[str, object]:
        return {"json_key": key, **self._recorded}

    def existing(self) -> dict[Path, Manifest] | None:
        """The manifests, if every key of the shard is finished.

        Raises:
            InputError: something else lies under a prefix.
        """
        found = {
            prefix: existing_corpus(
                prefix,
                settings=self._recorded_for(key),
                versions=self._encoder.versions,
                inputs=self._inputs,
                output_flag="--output-prefix",
            )
            for key, prefix in self._prefixes.items()
        }
        manifests = {prefix: manifest for prefix, manifest in found.items() if manifest is not None}
        return manifests if len(manifests) == len(found) else None

    def run(self, pool: WorkerPool[Unit, EncodedUnit]) -> dict[Path, Manifest]:
        """Write every sequence beside its target, and publish when all are written."""
        token_dtype = optimal_dtype(self._encoder.vocab_size)
        with ExitStack() as stack:
            for prefix in self._prefixes.values():
                stack.enter_context(prefix_lock(prefix))
            if (existing := self.existing()) is not None:  # another process was first
                return existing
            outputs = [
                KeyOutput(stack, prefix, token_dtype, self._settings.skip_bad_lines)
                for prefix in self._prefixes.values()
            ]
            progress = stack.enter_context(Progress(self.size_bytes, "B"))
            with ExitStack() as lists:
                rejected = [output.open_rejected(lists) for output in outputs]
                self._encode(pool, outputs, rejected, progress)
            return {
                prefix: output.publish(self._recorded_for(key), self._encoder.versions, self._inputs)
                for (key, prefix), output in zip(self._prefixes.items(), outputs, strict=True)
            }

    def _encode(
        self,
        pool: WorkerPool[Unit, EncodedUnit],
        outputs: list[KeyOutput],
        rejected: list[IO[bytes] | None],
        progress: Progress,
    ) -> None:
        counter: LineCounter | None = None
        first_rejected: str | None = None
        fields, max_line_bytes = self._settings.fields, self._settings.max_line_bytes
        units = (unit for span in self._spans for unit in units_of(span, fields, max_line_bytes))
        for unit, encoded in pool.map(units):
            if counter is None or counter.span is not unit.span:
                counter = LineCounter(unit.span)
            for line in encoded.rejected:
                self._reject(line, counter, rejected)
                first_rejected = first_rejected or counter.describe(line)
            counter.advance(encoded.num_lines)
            source = os.path.relpath(unit.source.path, self._directory)
            for output, texts in zip(outputs, encoded.texts, strict=True):
                output.append(texts, source)
                output.num_rejected += len(encoded.rejected)
            progress.advance(unit.size_bytes)
        if first_rejected is not None and outputs[0].num_documents == 0:
            raise InputError(f"all {outputs[0].num_rejected:,} lines are bad, the first: {first_rejected}")

    def _reject(self, line: Rejected, counter: LineCounter, streams: list[IO[bytes] | None]) -> None:
        if not self._settings.skip_bad_lines:
            raise InputError(counter.describe(line))
        entry = {"file": str(counter.span.source.path), "line": counter.line(line), "reason": line.reason}
        for stream in streams:
            if stream is not None:
                stream.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
