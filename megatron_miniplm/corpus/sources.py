"""The files that a corpus is made of, and how they are cut into units of work.

    files, directories, globs ──► Source ... ──► units of 16 MiB ──► shards (runs of units)

A unit is a fixed piece of one file, whatever the number of shards and workers: of JSONL, the lines that start in
[k * 16 MiB, (k + 1) * 16 MiB) of the uncompressed text; of Parquet, about as much in rows. What comes out of a unit
depends on nothing but the unit, so shards and workers cannot change the output.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.corpus.listing import PARQUET, TEXT, files_of, kind_of
from megatron_miniplm.corpus.parquet_text import ParquetText

logger = logging.getLogger(__name__)

UNIT_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file.

    Attributes:
        format: `jsonl` or `parquet`.
        compression: of JSONL: `gzip`, `zstd`, `bz2`, `xz` or None.
        size_bytes: on disk.
    """

    path: Path
    format: str
    compression: str | None
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """The part of a source that a shard reads.

    Attributes:
        start, stop: plain JSONL: bytes, multiples of `UNIT_BYTES` or the end of the file; compressed JSONL: all of it,
            0 and its size on disk; Parquet: row groups.
        size_bytes: about what it takes of the file on disk.
    """

    source: Source
    start: int
    stop: int
    size_bytes: int


def expand_inputs(inputs: Sequence[str | Path]) -> list[Source]:
    """The files that inputs stand for: a file itself, a directory all below it by path, a glob its matches by path.

    Raises:
        InputError: an input does not exist or stands for no file, or a file cannot be read.
    """
    sources = [_source(path) for given in inputs for path in files_of(Path(given))]
    if num_again := len(sources) - len({os.path.realpath(source.path) for source in sources}):
        logger.warning("%s of the files are given more than once: their text will be in the corpus as often", num_again)
    return sources


def shard_spans(sources: Sequence[Source], shard_index: int, num_shards: int, *, by_files: bool = False) -> list[Span]:
    """Shard `shard_index` of `num_shards`: a run of units with about that share of the bytes on disk.

    A unit belongs to the shard in whose share its first byte lies; a compressed JSONL file cannot be entered in the
    middle and belongs to one shard whole. The shards of all indices together hold every unit once, in order.

    Args:
        by_files: a run of whole files, with that share of their number; where one ends does not depend on their sizes.
    """
    if by_files:
        first, last = (len(sources) * index // num_shards for index in (shard_index, shard_index + 1))
        return [span for source in sources[first:last] for span in _span_of(source, 0, source.size_bytes)]
    total_bytes = sum(source.size_bytes for source in sources)
    share_start = total_bytes * shard_index // num_shards
    share_stop = total_bytes * (shard_index + 1) // num_shards
    spans = []
    start_bytes = 0
    for source in sources:
        start, stop = share_start - start_bytes, share_stop - start_bytes
        start_bytes += source.size_bytes
        if stop > 0 and start < source.size_bytes:
            spans += _span_of(source, max(0, start), min(stop, source.size_bytes))
    return spans


def whole_span(source: Source) -> Span:
    """All of a source."""
    (span,) = _span_of(source, 0, source.size_bytes) or [Span(source=source, start=0, stop=0, size_bytes=0)]
    return span


def _span_of(source: Source, start: int, stop: int) -> list[Span]:
    """The units of a source whose first byte lies in [start, stop) of its bytes on disk, as a span or none."""
    if source.format == "parquet":
        runs = list(row_group_runs(source.path))
        num_groups = runs[-1][1] if runs else 0
        # A run of row groups starts at its share of the file.
        inside = [run for run in runs if start <= source.size_bytes * run[0] // num_groups < stop]
        first, last = (inside[0][0], inside[-1][1]) if inside else (0, 0)
        size_bytes = source.size_bytes * (last - first) // max(1, num_groups)
    elif source.compression is not None:
        first, last = (0, source.size_bytes) if start == 0 else (0, 0)
        size_bytes = source.size_bytes
    else:
        first, last = (min(source.size_bytes, -(-edge // UNIT_BYTES) * UNIT_BYTES) for edge in (start, stop))
        size_bytes = last - first
    return [Span(source=source, start=first, stop=last, size_bytes=size_bytes)] if first < last else []


def row_group_runs(path: Path) -> Iterator[tuple[int, int]]:
    """Runs [first, stop) of row groups of about a unit each: small ones are read together, a large one is a run."""
    group_bytes = ParquetText(path).group_bytes
    first, size_bytes = 0, 0
    for group, added_bytes in enumerate(group_bytes):
        size_bytes += added_bytes
        if size_bytes >= UNIT_BYTES or group == len(group_bytes) - 1:
            yield first, group + 1
            first, size_bytes = group + 1, 0


def _source(path: Path) -> Source:
    kind = kind_of(path)
    return Source(
        path=path,
        format=PARQUET if kind == PARQUET else TEXT,
        compression=kind if kind not in (PARQUET, TEXT) else None,
        size_bytes=path.stat().st_size,
    )
