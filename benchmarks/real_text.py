#!/usr/bin/env python3
"""Collect real text of this machine into JSONL with the keys text, id and domain: nothing is downloaded.

  python benchmarks/real_text.py --output text.jsonl --bytes 420000000

Sources, documentation, translations, tables and pages of the Python installation, /usr/share, /usr/lib and
/usr/include: UTF-8 files of 64 B to 1 MB, in an order shuffled with a fixed seed. Exact duplicates are dropped. The
domain is the file's suffix. The same installation gives the same file.
"""

import argparse
import hashlib
import json
import os
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.command_line import report

MIN_FILE_BYTES = 64
MAX_FILE_BYTES = 1_000_000
SEED = 1234
SYSTEM_DIRECTORIES = (Path("/usr/share"), Path("/usr/lib"), Path("/usr/include"))
SUFFIXES = frozenset(
    f".{name}"
    for names in (
        ("htm", "html", "md", "po", "pot", "rst", "sgml", "tex", "txt", "xml", "xsl"),
        ("c", "cc", "cpp", "cu", "cuh", "go", "h", "hpp", "inc", "ipp", "java", "js", "rs", "ts"),
        ("cmake", "el", "lua", "php", "pl", "pm", "py", "pyi", "rb", "sh", "sql", "tcl", "vim"),
        ("bib", "conf", "css", "csv", "ini", "json", "svg", "toml", "tsv", "yaml", "yml"),
    )
    for name in names
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--bytes", type=int, default=420_000_000, metavar="N", help="stop at this size of the file")
    arguments = parser.parse_args()
    try:
        num_documents = collect_text(arguments.output, arguments.bytes)
    except InputError as error:
        return report(error)
    print(f"{arguments.output}: {num_documents:,} documents, {arguments.output.stat().st_size:,} bytes")
    return 0


def collect_text(output: Path, num_bytes: int) -> int:
    """Write at least `num_bytes` of JSONL, at most a document more; returns the number of documents.

    Raises:
        InputError: there is not that much text here.
    """
    paths = sorted(set(text_files(source_directories())))
    random.Random(SEED).shuffle(paths)
    seen: set[bytes] = set()
    written_bytes = 0
    with atomic_output(output) as stream:
        for path in paths:
            if (text := read_text(path)) is None:
                continue
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if digest in seen:
                continue
            document = {"text": text, "id": f"d{len(seen)}", "domain": path.suffix.removeprefix(".").lower()}
            seen.add(digest)
            written_bytes += stream.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
            if written_bytes >= num_bytes:
                return len(seen)
        raise InputError(
            f"this machine has {written_bytes:,} bytes of text, {num_bytes:,} are wanted: lower --bytes, install more "
            "(documentation, headers), or give a JSONL file of your own to --input"
        )


def source_directories() -> list[Path]:
    """The Python installation's and the system's, none inside another."""
    installed = {Path(sysconfig.get_path(key)) for key in ("stdlib", "platstdlib", "purelib", "platlib", "include")}
    directories = sorted({path.resolve() for path in (*installed, *SYSTEM_DIRECTORIES) if path.is_dir()})
    return [path for path in directories if not any(parent in directories for parent in path.parents)]


def text_files(directories: list[Path]) -> Iterator[Path]:
    for directory in directories:
        for parent, _, names in os.walk(directory):
            for name in names:
                path = Path(parent, name)
                if path.suffix.lower() in SUFFIXES:
                    yield path


def read_text(path: Path) -> str | None:
    """The file's text byte for byte; None where it is a link, too small, too large, unreadable or not UTF-8."""
    try:
        if path.is_symlink() or not MIN_FILE_BYTES <= path.stat().st_size <= MAX_FILE_BYTES:
            return None
        return path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


if __name__ == "__main__":
    sys.exit(main())
