"""The verb of this package: JSONL files and a tokenizer in, one `.bin/.idx` pair with its manifest a key out.

The bytes are those of Megatron's `tools/preprocess_data.py`: one document is one sequence, `--append-eod` gives every
document that has tokens one more, and a document without tokens is a document boundary without a sequence.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, Manifest, digest_file, load_manifest
from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of, manifest_path
from megatron_miniplm.corpus.readers import Batch, check_inputs, read_batches
from megatron_miniplm.corpus.tokenizers import TextEncoder, load_encoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.layout import bin_path, idx_path, optimal_dtype
from megatron_miniplm.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """What shapes a corpus.

    Attributes:
        inputs: JSONL files, in the order in which their documents are written.
        output_prefix: the pair of a key is `<output_prefix>_<key>_document`.
        json_keys: the keys whose values are text.
        tokenizer_type: see `tokenizers.TOKENIZER_TYPES`.
        tokenizer_model: file or directory.
        append_eod: whether every document ends with the tokenizer's end-of-document token.
    """

    inputs: tuple[Path, ...]
    output_prefix: Path
    json_keys: tuple[str, ...]
    tokenizer_type: str
    tokenizer_model: Path
    append_eod: bool

    def prefix(self, key: str) -> Path:
        return self.output_prefix.with_name(f"{self.output_prefix.name}_{key}_document")


def build_corpus(settings: BuildSettings, *, num_threads: int) -> dict[Path, Manifest]:
    """Encode the inputs, or recognise that this was already done.

    Args:
        num_threads: encoder threads; the output does not depend on it.

    Returns:
        The manifest of every prefix, in the order of the keys.

    Raises:
        InputError: an input, the tokenizer or the output prefix cannot be used; nothing was published.
    """
    check_inputs(settings.inputs)
    encoder = load_encoder(settings.tokenizer_type, settings.tokenizer_model, num_threads)
    if settings.append_eod and encoder.eod_id is None:
        raise InputError(
            f"--append-eod needs an end-of-document token, and {settings.tokenizer_model} names none: set eos_token in "
            "its tokenizer_config.json (SentencePiece: train with an eos_id), or leave out --append-eod"
        )
    plan = _plan_outputs(settings, encoder)
    existing = {prefix: found for prefix, wanted in plan.items() if (found := _existing(prefix, wanted)) is not None}
    if len(existing) == len(plan):
        logger.info("%s is complete already, from the same inputs and settings: nothing to do", settings.output_prefix)
        return existing
    return _encode_inputs(settings, encoder, plan)


@dataclass(frozen=True, kw_only=True)
class _Origin:
    """The part of a manifest that is known before anything is encoded, and that decides what comes out."""

    settings: dict[str, object]
    versions: dict[str, str]
    inputs: tuple[ArtifactInput, ...]

    def content(self) -> tuple[object, ...]:
        return self.settings, [(parent.role, parent.fingerprint) for parent in self.inputs]


def _plan_outputs(settings: BuildSettings, encoder: TextEncoder) -> dict[Path, _Origin]:
    fingerprints: list[tuple[str, Path, Fingerprint]] = [("text", path, digest_file(path)) for path in settings.inputs]
    fingerprints.append(("tokenizer", settings.tokenizer_model, encoder.fingerprint()))
    directory = settings.output_prefix.parent
    inputs = tuple(input_of(role, path, found, relative_to=directory) for role, path, found in fingerprints)
    return {
        settings.prefix(key): _Origin(
            settings={
                "json_key": key,
                "tokenizer_type": settings.tokenizer_type,
                "vocab_size": encoder.vocab_size,
                "eod_id": encoder.eod_id,
                "append_eod": settings.append_eod,
            },
            versions=encoder.versions,
            inputs=inputs,
        )
        for key in settings.json_keys
    }


def _existing(prefix: Path, wanted: _Origin) -> Manifest | None:
    """The manifest of a finished prefix with the same content; None where there is nothing.

    Raises:
        InputError: something else lies under the prefix.
    """
    remedy = "choose another --output-prefix, or delete it"
    if not manifest_path(prefix).exists():
        for path in (bin_path(prefix), idx_path(prefix)):
            if path.exists():
                raise InputError(
                    f"{path} exists without {manifest_path(prefix).name}, so it is another tool's or unfinished: "
                    f"{remedy}"
                )
        return None
    manifest = load_manifest(prefix)
    found = _Origin(settings=manifest.settings, versions=manifest.versions, inputs=manifest.inputs)
    if found.content() != wanted.content():
        raise InputError(f"{prefix} was made from other inputs or settings than those given now: {remedy}")
    if IndexedCorpus.open(prefix).fingerprint() != manifest.fingerprint:
        raise InputError(f"{prefix} has changed since it was made: {remedy}")
    return manifest


def _encode_inputs(settings: BuildSettings, encoder: TextEncoder, plan: dict[Path, _Origin]) -> dict[Path, Manifest]:
    """Write every document beside its target, and publish when all are written."""
    eod_id = encoder.eod_id if settings.append_eod else None
    token_dtype = optimal_dtype(encoder.vocab_size)
    with ExitStack() as stack:
        outputs = {
            key: _Output(writer=stack.enter_context(IndexedWriter(settings.prefix(key), token_dtype)))
            for key in settings.json_keys
        }
        progress = stack.enter_context(Progress(sum(path.stat().st_size for path in settings.inputs), "B"))
        for batch in read_batches(settings.inputs, settings.json_keys):
            for key, output in outputs.items():
                output.append(batch, key, encoder, eod_id)
            progress.advance(batch.input_bytes)
        return {prefix: output.publish(plan[prefix]) for prefix, output in zip(plan, outputs.values(), strict=True)}


@dataclass(kw_only=True)
class _Output:
    """The pair of one key while it is written."""

    writer: IndexedWriter
    text_bytes: int = 0

    def append(self, batch: Batch, key: str, encoder: TextEncoder, eod_id: int | None) -> None:
        tokens_T, lengths_D = encoder.encode(batch.texts[key])
        if tokens_T.max(initial=0) > np.iinfo(self.writer.token_dtype).max:
            raise InputError(
                f"the tokenizer gave id {tokens_T.max()}, but says that it has {encoder.vocab_size} tokens, for which "
                f"Megatron stores {self.writer.token_dtype}: renumber its vocabulary without gaps"
            )
        if eod_id is not None:
            tokens_T, lengths_D = append_eod(tokens_T, lengths_D, eod_id)
        has_tokens_D = lengths_D > 0
        self.writer.append(tokens_T, lengths_D[has_tokens_D], sequences_per_document_D=has_tokens_D)
        self.text_bytes += batch.text_bytes[key]

    def publish(self, origin: _Origin) -> Manifest:
        """Make the pair visible, its manifest last."""
        prefix = self.writer.prefix
        files = self.writer.close()
        manifest = Manifest(
            kind="corpus",
            fingerprint=IndexedCorpus.open(prefix).fingerprint(),
            counts={
                "num_sequences": self.writer.num_sequences,
                "num_documents": self.writer.num_documents,
                "num_tokens": self.writer.num_tokens,
                "text_bytes": self.text_bytes,
            },
            settings=origin.settings,
            versions=origin.versions,
            inputs=origin.inputs,
            files=files,
        )
        manifest.write(prefix)
        return manifest


def append_eod(tokens_T: np.ndarray, lengths_D: np.ndarray, eod_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Give every document that has tokens one more, as Megatron does; returns the new tokens and lengths."""
    has_tokens_D = lengths_D > 0
    stops = np.cumsum(lengths_D)[has_tokens_D]
    return np.insert(tokens_T, stops, eod_id), lengths_D + has_tokens_D
