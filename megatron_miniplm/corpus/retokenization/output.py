"""A corpus whose sequences were converted, while it is written."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.copying import copy_pieces, copy_sequences, relocated, with_columns
from megatron_miniplm.indexed.pieces import crc32_of_runs
from megatron_miniplm.indexed.sidecar import Sidecar, SidecarWriter, sidecar_path

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
