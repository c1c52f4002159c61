"""The files of one key and shard while they are written."""

from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from megatron_miniplm.artifacts import Manifest, atomic_output
from megatron_miniplm.artifacts.manifest import ArtifactInput, checksum_of
from megatron_miniplm.corpus.encoding import EncodedTexts
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter

REJECTED_SUFFIX = ".rejected.jsonl"


class KeyOutput:
    """The `.bin/.idx`, sidecar and list of rejected lines of one prefix; nothing is visible before `publish`.

    Args:
        stack: ends the writing.
        lists_rejected: whether there is a list of rejected lines.

    Attributes:
        num_documents, num_rejected: so far.
    """

    def __init__(self, stack: ExitStack, prefix: Path, token_dtype: np.dtype, lists_rejected: bool) -> None:
        from megatron_miniplm.indexed.sidecar import SidecarWriter, as_table  # pyarrow starts threads: see `workers`

        self._as_table = as_table
        self.writer = stack.enter_context(IndexedWriter(prefix, token_dtype, companions=(REJECTED_SUFFIX,)))
        self.sidecar = stack.enter_context(SidecarWriter(prefix))
        self.num_rejected = 0
        self._rejected_path = prefix.with_name(prefix.name + REJECTED_SUFFIX) if lists_rejected else None
        self.num_documents = self._text_bytes = self._num_empty = 0

    def open_rejected(self, stack: ExitStack) -> IO[bytes] | None:
        return stack.enter_context(atomic_output(self._rejected_path)) if self._rejected_path else None

    def append(self, texts: EncodedTexts, source: str) -> None:
        self.sidecar.append(self._as_table(texts.pieces, source, self.writer.num_sequences))
        self.writer.append(texts.tokens_T, texts.lengths_N, texts.sequences_per_document_D)
        self._text_bytes += int(texts.pieces.text_bytes_P.sum())
        self.num_documents += texts.num_documents
        self._num_empty += texts.num_empty_documents

    def publish(
        self, settings: dict[str, object], versions: dict[str, str], inputs: tuple[ArtifactInput, ...]
    ) -> Manifest:
        """Make the files visible, the manifest last."""
        prefix = self.writer.prefix
        counts = {
            "num_sequences": self.writer.num_sequences,
            "num_documents": self.num_documents,
            "num_empty_documents": self._num_empty,
            "num_tokens": self.writer.num_tokens,
            "text_bytes": self._text_bytes,
        }
        files = self.sidecar.close()
        if self._rejected_path is not None:
            counts["num_rejected_lines"] = self.num_rejected
            files[self._rejected_path.name] = checksum_of(self._rejected_path)
        files = {**self.writer.close(), **files}
        manifest = Manifest(
            kind="corpus",
            fingerprint=IndexedCorpus.open(prefix).fingerprint(),
            counts=counts,
            settings=settings,
            versions=versions,
            inputs=inputs,
            files=files,
        )
        manifest.write(prefix)
        return manifest
