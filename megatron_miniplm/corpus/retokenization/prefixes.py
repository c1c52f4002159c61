"""The two ends of a conversion: what is known of a prefix (text files, tokenizer, cuts), and its copy while written."""

import os
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megatron_miniplm.artifacts import Fingerprint, Manifest, load_manifest
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of, prefix_manifest_path
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.units import MAX_LINE_BYTES
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.copying import copy_pieces, copy_sequences, relocated, with_columns
from megatron_miniplm.indexed.pieces import crc32_of_runs
from megatron_miniplm.indexed.sidecar import Sidecar, SidecarWriter, sidecar_path
from megatron_miniplm.indexed.view import data_prefix

#: Settings of a corpus that stay true in another tokenizer.
_KEPT_SETTINGS = ("json_key", "sequence", "append_eod", "id_key", "domain_key")
#: Types whose `vocab_size` is a flag; for the others it is recorded as found in their files.
_SIZED_TYPES = ("TikTokenizer", "NullTokenizer")
_TYPE_REMEDY = "give --source-tokenizer-type and --source-tokenizer-model"


@dataclass(frozen=True, kw_only=True)
class SourceTokenizer:
    """Settings of the tokenizer that made the ids, and its fingerprint if a manifest says it."""

    settings: TokenizerSettings
    fingerprint: Fingerprint | None

    def check(self, encoder: TextEncoder, prefix: Path) -> None:
        """Raise FingerprintMismatchError if this is not the tokenizer that the corpus was made with."""
        if self.fingerprint not in (None, found := encoder.fingerprint()):
            place = " and ".join(map(str, self.settings.files)) or self.settings.tokenizer_type
            raise FingerprintMismatchError(
                f"{prefix} was encoded with tokenizer {str(self.fingerprint)[:SHORT_HEX]}, {place} is "
                f"{found[:SHORT_HEX]}: give the one it was encoded with as --source-tokenizer-model"
            )


class Origin:
    """A prefix, and the manifest and sidecar of the corpus that holds its tokens (itself, unless it is a view).

    Attributes:
        corpus: the prefix, opened.
        fingerprint: its identity, compared with its own manifest.
        manifest, sidecar: None if there is none.
    """

    def __init__(self, prefix: Path) -> None:
        self.corpus = IndexedCorpus.open(prefix)
        self.fingerprint = self.corpus.verified_fingerprint()
        self._data = data_prefix(prefix)
        has_manifest = prefix_manifest_path(self._data).exists()
        self.manifest: Manifest | None = load_manifest(self._data) if has_manifest else None
        self.sidecar = Sidecar.of(self.corpus)

    @property
    def prefix(self) -> Path:
        return self.corpus.prefix

    @property
    def kept_settings(self) -> dict[str, Any]:
        """What the manifest of a conversion takes over."""
        settings = self.manifest.settings if self.manifest is not None else {}
        return {name: settings[name] for name in _KEPT_SETTINGS if name in settings}

    @property
    def max_line_bytes(self) -> int:
        """The bound under which the text was read."""
        settings = self.manifest.settings if self.manifest is not None else {}
        return int(settings.get("max_line_bytes", MAX_LINE_BYTES))

    def require_text(self) -> Sidecar:
        """The sidecar.

        Raises:
            InputError: without it, or without the manifest, the text cannot be found.
        """
        for path, known in (
            (sidecar_path(self._data), self.sidecar is not None),
            (prefix_manifest_path(self._data), "json_key" in self.kept_settings),
        ):
            if not known:
                raise InputError(f"the text behind {self.prefix} is unknown without {path}: convert with --from tokens")
        assert self.sidecar is not None
        return self.sidecar

    def text_fingerprints(self) -> dict[Path, Fingerprint]:
        """Of the text files when they were encoded, by absolute path."""
        return {self._path_of(parent).absolute(): parent.fingerprint for parent in self._inputs("text")}

    def inputs(self, directory: Path) -> tuple[ArtifactInput, ...]:
        """The prefix, and the text behind its sidecar, as a manifest in a directory names them."""
        texts = [
            input_of(parent.role, self._path_of(parent), parent.fingerprint, relative_to=directory)
            for parent in self._inputs("text")
        ]
        return (input_of("source", self.prefix, self.fingerprint, relative_to=directory), *texts)

    def tokenizer(self, tokenizer_type: str | None, tokenizer_model: Path | None) -> SourceTokenizer:
        """The tokenizer of the ids: as the manifest has it, except for what is given.

        Raises:
            InputError: neither says enough, or its files are gone.
        """
        recorded = self.manifest.settings if self.manifest is not None else {}
        parents = self._inputs("tokenizer")
        fingerprint = parents[0].fingerprint if parents else None
        name = tokenizer_type or recorded.get("tokenizer_type")
        if name is None:
            raise InputError(f"{self._data} has no manifest that names its tokenizer: {_TYPE_REMEDY}")
        if tokenizer_type not in (None, recorded.get("tokenizer_type")):
            return SourceTokenizer(
                settings=TokenizerSettings(tokenizer_type=name, tokenizer_model=tokenizer_model),
                fingerprint=fingerprint,
            )
        known = {field.name for field in fields(TokenizerSettings)} & recorded.keys()
        values = {key: recorded[key] for key in known if key != "vocab_size" or name in _SIZED_TYPES}
        if "special_tokens" in values:
            values["special_tokens"] = tuple(values["special_tokens"])
        if tokenizer_model is not None:
            files = {"tokenizer_model": tokenizer_model}
        else:
            places = ("vocab_file", "merge_file") if len(parents) > 1 else ("tokenizer_model",)
            files = dict(zip(places, map(self._path_of, parents), strict=False))
            if gone := [path for path in files.values() if not path.exists()]:
                raise InputError(
                    f"{gone[0]}, the tokenizer of {self._data}, does not exist: give --source-tokenizer-model"
                )
        settings = TokenizerSettings(**{**values, "tokenizer_type": name, **files})
        return SourceTokenizer(settings=settings, fingerprint=fingerprint)

    def _inputs(self, role: str) -> list[ArtifactInput]:
        return [parent for parent in self.manifest.inputs if parent.role == role] if self.manifest is not None else []

    def _path_of(self, parent: ArtifactInput) -> Path:
        return Path(os.path.normpath(self._data.parent / parent.path))


ROUND_TRIP_SUFFIX = ".round_trip.jsonl"


class ConvertedOutput:
    """The `.bin`, `.idx` and sidecar of one prefix; nothing is visible before `close`.

    Axes: P pieces, N sequences of those that are given; what has no token is left out.

    Args:
        stack: ends the writing.
        source: the sidecar of what is converted; without one there is none.
    """

    def __init__(self, stack: ExitStack, prefix: Path, token_dtype: np.dtype, source: Sidecar | None) -> None:
        self.writer = stack.enter_context(IndexedWriter(prefix, token_dtype, companions=(ROUND_TRIP_SUFFIX,)))
        sidecar_path(prefix).unlink(missing_ok=True)  # of a killed run
        self._source = source
        self._sidecar = stack.enter_context(SidecarWriter(prefix)) if source is not None else None
        self._text_bytes = 0

    def append(
        self, tokens_T: np.ndarray, lengths_P: np.ndarray, sequence_P: np.ndarray, rows: pa.Table | None
    ) -> np.ndarray:
        """Add sequences, each a document.

        Args:
            tokens_T: of all pieces, one after the other.
            lengths_P: tokens of each piece.
            sequence_P: which sequence a piece belongs to; equal ones stand together.
            rows: the pieces as the old sidecar has them, if it does.

        Returns:
            Which of the N sequences have tokens, bool.
        """
        first_N = np.flatnonzero(np.append(True, sequence_P[1:] != sequence_P[:-1])[: len(sequence_P)])
        lengths_N = np.add.reduceat(lengths_P, first_N) if len(first_N) else np.empty(0, np.int64)
        is_kept_N = lengths_N > 0
        if self._sidecar is not None and self._source is not None and rows is not None:
            num_pieces_N = np.diff(first_N, append=len(sequence_P))
            is_kept_P = np.repeat(is_kept_N, num_pieces_N)
            new_P = np.repeat(self.writer.num_sequences + np.cumsum(is_kept_N) - 1, num_pieces_N)
            crc32_P = crc32_of_runs(tokens_T, lengths_P)
            table = with_columns(rows, sequence=new_P, num_tokens=lengths_P, crc32=crc32_P).filter(pa.array(is_kept_P))
            self._sidecar.append(relocated(table, self._source, self.writer.prefix.parent))
            self._text_bytes += int(table["text_bytes"].to_numpy().sum())
        self.writer.append(tokens_T, lengths_N[is_kept_N])
        return is_kept_N

    def copy(self, converted: IndexedCorpus) -> None:
        """Add the sequences of a converted corpus, or of a view of one, that has a sidecar."""
        sidecar = Sidecar.of(converted)
        assert sidecar is not None
        assert self._sidecar is not None
        first, directory = self.writer.num_sequences, self.writer.prefix.parent
        self._text_bytes += copy_pieces(converted, sidecar, self._sidecar, first_sequence=first, directory=directory)
        copy_sequences(converted, self.writer, lambda num_bytes: None)

    @property
    def counts(self) -> dict[str, int]:
        counts = {
            "num_sequences": self.writer.num_sequences,
            "num_documents": self.writer.num_documents,
            "num_tokens": self.writer.num_tokens,
        }
        return counts | ({"text_bytes": self._text_bytes} if self._sidecar is not None else {})

    def close(self) -> dict[str, Any]:
        """Publish; returns the manifest's `files` entries."""
        sidecar_files = self._sidecar.close() if self._sidecar is not None else {}
        return {**self.writer.close(), **sidecar_files}
