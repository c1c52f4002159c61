"""The files that inputs stand for, and what each of them is: by its first bytes, with its name as a check."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megatron_miniplm.artifacts.regular_files import open_regular
from megatron_miniplm.errors import InputError

logger = logging.getLogger(__name__)

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
