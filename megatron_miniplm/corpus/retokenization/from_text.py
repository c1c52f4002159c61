"""From the text that a corpus was made from into another tokenizer's ids: exact, since nothing is decoded."""

import glob
import shutil
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from megatron_miniplm.corpus.encoding import as_token_dtype, insert_eod
from megatron_miniplm.corpus.retokenization.excerpts import Excerpts, find_excerpts, read_excerpts
from megatron_miniplm.corpus.retokenization.prefixes import ConvertedOutput, Origin
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.corpus.workers import WorkerPool
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed.view import source_sequences
from megatron_miniplm.runtime.progress import Progress

Pool = WorkerPool[Any, tuple[np.ndarray, np.ndarray]]


def convert_text(origin: Origin, output: ConvertedOutput, pool: Pool, progress: Progress) -> dict[str, int]:
    """Append all sequences of a prefix, encoded from their text; returns counts of what is worth knowing.

    Text is read from start to end. Where a view has its sequences in another order, or repeats some, they are written
    beside the output first and copied in its order then.

    Raises:
        InputError: the text is unknown, missing or changed.
        CorruptArtifactError: the sidecar is of another corpus.
    """
    origin.require_text()
    sequences_K = source_sequences(origin.corpus)
    if (np.diff(sequences_K) > 0).all():
        is_kept_K = _append_ascending(origin, sequences_K, output, pool, progress)
    else:
        sequences_U, place_K = np.unique(sequences_K, return_inverse=True)
        is_kept_K = _append_in_order(origin, sequences_U, place_K, output, pool, progress)
    return {"num_empty_sequences": int((~is_kept_K).sum())}


class ExcerptEncoder:
    """Reads units, cuts the wanted pieces out of their documents and encodes them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder

    def encode(self, excerpts: Excerpts) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all pieces, and how many each has (int64), the end-of-document token included.

        Raises:
            InputError: a piece is not in the text.
        """
        texts, ends_document_P = read_excerpts(excerpts)
        tokens_T, lengths_P = self._encoder.encode(texts)
        tokens_T = as_token_dtype(tokens_T, self._encoder)
        if excerpts.append_eod:  # a document without tokens gets none
            has_eod_P = ends_document_P & ((lengths_P > 0) | (excerpts.start_byte_P > 0))
            tokens_T, lengths_P = insert_eod(tokens_T, lengths_P, has_eod_P, self._encoder.eod_id)
        return tokens_T, lengths_P


def _append_ascending(
    origin: Origin, sequences_U: np.ndarray, output: ConvertedOutput, pool: Pool, progress: Progress
) -> np.ndarray:
    """Append sequences of the data, strictly ascending; returns which of them have tokens."""
    sidecar, settings = origin.require_text(), origin.kept_settings
    found = find_excerpts(
        sidecar,
        sequences_U,
        json_key=settings["json_key"],
        append_eod=settings["append_eod"],
        max_line_bytes=origin.max_line_bytes,
        fingerprints=origin.text_fingerprints(),
    )
    rows_ahead: deque[pa.Table] = deque()  # of the work on its way; workers need less than the rows

    def work() -> Iterator[Excerpts]:
        for excerpts, rows in found if len(sequences_U) else ():
            rows_ahead.append(rows)
            yield excerpts

    is_kept_U = np.zeros(len(sequences_U), bool)
    num_sequences = 0
    for _, (tokens_T, lengths_P) in pool.map(work()):
        rows = rows_ahead.popleft()
        place_P = rows["sequence"].to_numpy()
        places = np.unique(place_P)
        is_kept_U[places] = output.append(tokens_T, lengths_P, place_P, rows)
        num_sequences += len(places)
        progress.advance(len(places))
    if num_sequences != len(sequences_U):
        raise CorruptArtifactError(
            f"{sidecar.path} describes {num_sequences} of {len(sequences_U)} sequences: it belongs to another corpus; "
            "preprocess again"
        )
    return is_kept_U


def _append_in_order(
    origin: Origin,
    sequences_U: np.ndarray,
    place_K: np.ndarray,
    output: ConvertedOutput,
    pool: Pool,
    progress: Progress,
) -> np.ndarray:
    """Append sequence `sequences_U[place_K[k]]` for every k; returns which of the K have tokens."""
    prefix = output.writer.prefix
    hidden = f".{prefix.name}.unordered."
    for stale in prefix.parent.glob(f"{glob.escape(hidden)}*"):
        shutil.rmtree(stale, ignore_errors=True)  # of a killed run; links are not followed
    with TemporaryDirectory(prefix=hidden, dir=prefix.parent, ignore_cleanup_errors=True) as name:
        directory = Path(name)
        with ExitStack() as stack:
            stage = ConvertedOutput(stack, directory / "ascending", output.writer.token_dtype, origin.sidecar)
            is_kept_U = _append_ascending(origin, sequences_U, stage, pool, progress)
            stage.close()
        is_kept_K = is_kept_U[place_K]
        ordered_K = (np.cumsum(is_kept_U) - 1)[place_K[is_kept_K]]
        ascending = IndexedCorpus.open(directory / "ascending")
        output.copy(IndexedCorpus.open(write_view(ascending, ordered_K, directory, label="ordered", settings={})))
    return is_kept_K
