"""The files that a corpus is made of, and how they are cut into units of work.

    files, directories, globs ──► Source ... ──► units of 16 MiB ──► shards (runs of units)

A unit is a fixed piece of one file, whatever the number of shards and workers: of JSONL, the lines that start in
[k * 16 MiB, (k + 1) * 16 MiB) of the uncompressed text; of Parquet, about as much in rows. What comes out of a unit
depends on nothing but the unit, so shards and workers cannot change the output.
"""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.errors import InputError

UNIT_BYTES = 16 << 20

#: Suffixes by which the files of a directory are recognised, with their compression. A file that is named is read
#: whatever it is called: as Parquet, .gz and .zst by its last suffix, else as JSONL.
_TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
_PARQUET_SUFFIX = ".parquet"
_GLOB_CHARACTERS = frozenset("*?[")
#: What our own tools write; never text, though it may lie in the directory of the text.
_OUTPUT_SUFFIXES = (".documents.parquet", ".rejected.jsonl", ".round_trip.jsonl", "manifest.json")


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file.

    Attributes:
        format: `jsonl` or `parquet`.
        compression: of JSONL: `gzip`, `zstd` or None.
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
        InputError: an input does not exist, or stands for no file.
    """
    return [_source(path) for given in inputs for path in _files_of(Path(given))]


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
    metadata = open_parquet(path).metadata
    first, size_bytes = 0, 0
    for group in range(metadata.num_row_groups):
        size_bytes += metadata.row_group(group).total_byte_size
        if size_bytes >= UNIT_BYTES or group == metadata.num_row_groups - 1:
            yield first, group + 1
            first, size_bytes = group + 1, 0


def open_parquet(path: Path):  # type: ignore[no-untyped-def]  # pyarrow has no types
    """Open a Parquet file.

    Raises:
        InputError: it is not one, or it is truncated.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a whole Parquet file ({error}): copy or write it again") from None


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in _walk(path) if _is_text(file))
        if not found:
            expected = ", ".join((*_TEXT_SUFFIXES, _PARQUET_SUFFIX))
            raise InputError(f"{path} holds no file to read: expected names that end in {expected} (.gz, .zst)")
        return found
    if path.exists():
        return [path]
    if _GLOB_CHARACTERS & set(str(path)):
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = sorted(file for file in matches if file.is_file() and not file.name.endswith(_OUTPUT_SUFFIXES))
        if not found:
            raise InputError(f"{path} matches no file: mend the pattern in --input")
        return found
    raise InputError(f"{path} does not exist: give files, directories or globs of text to --input")


def _walk(directory: Path) -> Iterator[Path]:
    """All files below a directory; hidden ones, such as another job's unfinished downloads, are left out."""
    for parent, names, files in os.walk(directory):
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(parent) / file for file in files if not file.startswith("."))


def _is_text(path: Path) -> bool:
    if path.name.endswith(_OUTPUT_SUFFIXES):
        return False
    name = path.with_suffix("") if path.suffix in _COMPRESSIONS else path
    return path.suffix == _PARQUET_SUFFIX or name.suffix in _TEXT_SUFFIXES


def _source(path: Path) -> Source:
    return Source(
        path=path,
        format="parquet" if path.suffix == _PARQUET_SUFFIX else "jsonl",
        compression=_COMPRESSIONS.get(path.suffix),
        size_bytes=path.stat().st_size,
    )
