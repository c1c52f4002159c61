"""What is known of a prefix that is to be converted: its text files, its tokenizer, how its sequences were cut."""

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts import Fingerprint, Manifest, load_manifest
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
from megatron_miniplm.artifacts.manifest import ArtifactInput, input_of, prefix_manifest_path
from megatron_miniplm.corpus.tokenization.tokenizers import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.units import MAX_LINE_BYTES
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import Sidecar, sidecar_path
from megatron_miniplm.indexed.source import data_prefix

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
