"""The files that a corpus is made of, and how they are cut into units of work.

    files, directories, globs ──► Source ... ──► units of 16 MiB ──► shards (runs of units)

A unit is a fixed piece of one file, whatever the number of shards and workers: of JSONL, the lines that start in
[k * 16 MiB, (k + 1) * 16 MiB) of the uncompressed text; of Parquet, about as much in rows. What comes out of a unit
depends on nothing but the unit, so shards and workers cannot change the output.
"""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.parquet_text import ParquetText
from megatron_miniplm.errors import InputError

TEXT, PARQUET = "jsonl", "parquet"
_TEXT_SUFFIXES = (".jsonl", ".json", ".ndjson")
_KIND_OF_SUFFIX = {
    ".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz", ".parquet": PARQUET,
}  # fmt: skip
#: How files of each kind begin; no JSON does.
_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    **{bytes([0x50 + number, 0x2A, 0x4D, 0x18]): "zstd" for number in range(16)},  # a skippable frame, as pzstd writes
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"PAR1": PARQUET,
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"LZIP": "lzip",
}
_READ = frozenset({TEXT, PARQUET, "gzip", "zstd", "bz2", "xz"})
_GLOB_CHARACTERS = frozenset("*?[")
#: What our own tools write; never text, though it may lie in the directory of the text.
_OUTPUT_SUFFIXES = (".documents.parquet", ".rejected.jsonl", ".round_trip.jsonl", "manifest.json")


def files_of(path: Path) -> list[Path]:
    """The files that one input stands for: a file itself, a directory all text below it, a glob its matches, by path.

    Raises:
        InputError: it does not exist, stands for no file, or is no regular file.
    """
    if path.is_dir():
        return _files_below(path)
    if path.exists():
        return [path]
    if _GLOB_CHARACTERS & set(str(path)):
        matches = map(Path, glob.glob(str(path), recursive=True))
        found = sorted(file for file in matches if file.is_file() and not file.name.endswith(_OUTPUT_SUFFIXES))
        if not found:
            raise InputError(f"{path} matches no file: fix the pattern in --input")
        return found
    raise InputError(f"{path} does not exist: give files, directories or globs of text to --input")


def kind_of(path: Path) -> str:
    """`TEXT`, `PARQUET`, or how JSONL is compressed: `gzip`, `zstd`, `bz2`, `xz`.

    Raises:
        InputError: it is no regular file, is compressed in a way that is not read, or is not what its name says.
    """
    _require_utf8(path)
    with open_regular(path) as stream:
        head = stream.read(max(map(len, _MAGIC)))
    named = _KIND_OF_SUFFIX.get(path.suffix.lower(), TEXT)
    if not head and named != TEXT:
        raise InputError(f"{path} is empty, and so not a {named} file: copy or write it again, or remove it")
    found = next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), TEXT)
    if found not in _READ:
        raise InputError(f"{path} is a {found} file, which is not read: compress the text with gzip or zstd instead")
    if named not in (TEXT, found):
        raise InputError(
            f"{path} is named as a {named} file, but does not begin as one (0x{head[:4].hex()}): copy it again, or "
            "rename it"
        )
    return found


def _files_below(directory: Path) -> list[Path]:
    """The text below a directory, by path; says how many files are passed over, and why."""
    found, passed_over = [], Counter[str]()
    for path in _walk(directory, passed_over):
        if path.name.endswith(_OUTPUT_SUFFIXES):
            passed_over["written by miniplm"] += 1
        elif not _is_named_as_text(path):
            passed_over[f"named {path.suffix or 'without a suffix'}"] += 1
        elif not path.is_file():
            passed_over[f"no regular file ({path.name})"] += 1
        else:
            found.append(path)
    if passed_over:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in passed_over.most_common(8))
        others = "" if len(passed_over) <= 8 else ", ..."
        logger.info(
            "%s: %s files to read, %s passed over (%s%s)",
            directory, f"{len(found):,}", f"{passed_over.total():,}", reasons, others,
        )  # fmt: skip
    if not found:
        expected = ", ".join((*_TEXT_SUFFIXES, ".parquet"))
        raise InputError(f"{directory} holds no file to read: expected names that end in {expected} (.gz, .zst, ...)")
    return sorted(found)


def _walk(directory: Path, passed_over: Counter[str]) -> Iterator[Path]:
    """All files below a directory, but for hidden ones, such as another job's unfinished downloads."""
    for parent, names, files in os.walk(directory, onerror=_raise):
        passed_over["hidden"] += sum(name.startswith(".") for name in (*names, *files))
        passed_over["linked directories"] += sum(os.path.islink(os.path.join(parent, name)) for name in names)
        names[:] = [name for name in names if not name.startswith(".")]
        yield from (Path(parent) / file for file in files if not file.startswith("."))
    for reason in [reason for reason, count in passed_over.items() if count == 0]:
        del passed_over[reason]


def _raise(error: OSError) -> None:
    """A directory that cannot be listed would otherwise be left out."""
    raise error


def _is_named_as_text(path: Path) -> bool:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return True
    name = path.with_suffix("") if suffix in _KIND_OF_SUFFIX else path
    return name.suffix.lower() in _TEXT_SUFFIXES


def _require_utf8(path: Path) -> None:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        name = os.fsencode(path)
        raise InputError(f"{name!r} is not UTF-8, as the names of input files must be: rename it") from None


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
