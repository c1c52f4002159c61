#!/usr/bin/env python3
"""Make a corpus from the text files of this Python installation: nothing is downloaded, nothing is shipped.

Four kinds of text, each a fixed share of the pool:

    prose   docstrings, READMEs, licences, reST and Markdown pages, Python's own reference manual (pydoc topics)
    code    Python, C and C++ sources
    data    JSON, HTML, CSV, SVG and other tables
    noise   hash lists (RECORD files of installed packages), certificates, character code tables

The last two are what a web crawl has plenty of and a student learns little from. The held-out text is prose (or more
kinds, each in a file of its own) from files of which no piece is in the pool; exact duplicates are dropped everywhere.
All of this is fixed by file names and a seed, before any model exists.
"""

import argparse
import ast
import hashlib
import json
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SHARES = {"prose": 0.35, "code": 0.25, "data": 0.20, "noise": 0.20}
PIECE_CHARACTERS = 320  # about a hundred tokens of the quickstart's tokenizer
MIN_CHARACTERS = 80
MAX_FILE_BYTES = 2_000_000
HELD_OUT_ONE_IN = 12

SUFFIXES = {
    "prose": {".md", ".rst", ".txt"},
    "code": {".py", ".h", ".hpp", ".c", ".cpp", ".cu", ".cuh", ".pyi"},
    "data": {".json", ".html", ".csv", ".svg", ".xml", ".yaml", ".yml", ".afm", ".js"},
    "noise": {".pem"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory that gets pool.jsonl and heldout.jsonl")
    parser.add_argument("--heldout-kinds", nargs="+", choices=SHARES, help="write heldout_KIND.jsonl of each instead")
    parser.add_argument("--pool-bytes", type=int, default=5_000_000)
    parser.add_argument("--heldout-bytes", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1234)
    arguments = parser.parse_args()

    files = list(text_files())
    random.Random(arguments.seed).shuffle(files)
    seen: set[bytes] = set()
    kinds = arguments.heldout_kinds or ["prose"]
    heldout = collect([f for f in files if is_held_out(f)], dict.fromkeys(kinds, arguments.heldout_bytes), seen)
    budget = {kind: int(share * arguments.pool_bytes) for kind, share in SHARES.items()}
    pool = collect([file for file in files if not is_held_out(file)], budget, seen)
    random.Random(arguments.seed).shuffle(pool)
    arguments.output.mkdir(parents=True, exist_ok=True)
    parts = {"pool": pool, "heldout": heldout}
    if arguments.heldout_kinds:
        del parts["heldout"]
        parts |= {f"heldout_{kind}": [document for document in heldout if document["kind"] == kind] for kind in kinds}
    for name, documents in parts.items():
        write(arguments.output / f"{name}.jsonl", documents)
        shares = {kind: sum(len(d["text"]) for d in documents if d["kind"] == kind) for kind in SHARES}
        total = sum(shares.values())
        mix = ", ".join(f"{kind} {size / total:.0%}" for kind, size in shares.items() if size)
        print(f"{name}: {len(documents):,} documents, {total / 1e6:.1f} MB ({mix})")


def is_held_out(file: tuple[str, Path]) -> bool:
    return int.from_bytes(digest(file[0].encode())) % HELD_OUT_ONE_IN == 0


def collect(files: list[tuple[str, Path]], budget: dict[str, int], seen: set[bytes]) -> list[dict[str, str]]:
    """Pieces of the files in order, until each kind has used up its budget of bytes; a text in `seen` is left out."""
    documents = []
    for name, path in files:
        for kind, text in pieces_of(path, {kind for kind, left in budget.items() if left > PIECE_CHARACTERS}):
            size, key = len(text.encode()), digest(text.encode())
            if size <= budget[kind] and key not in seen:
                seen.add(key)
                budget[kind] -= size
                documents.append({"text": text, "kind": kind, "file": name})
    return documents


def text_files() -> Iterator[tuple[str, Path]]:
    """Text files of the standard library and of the installed packages, by name, in a fixed order."""
    suffixes = set().union(*SUFFIXES.values())
    for key in ("stdlib", "purelib"):
        root = Path(sysconfig.get_path(key))
        for path in sorted(root.rglob("*")):
            if key == "stdlib" and "site-packages" in path.parts:
                continue
            named = path.suffix.lower() in suffixes or path.name in ("RECORD", "METADATA", "LICENSE", "COPYING")
            if named and path.is_file() and path.stat().st_size <= MAX_FILE_BYTES:
                yield f"{key}/{path.relative_to(root)}", path


def pieces_of(path: Path, wanted: set[str]) -> Iterator[tuple[str, str]]:
    """A file's pieces of the wanted kinds, with their kind; files that are not UTF-8 have none."""
    kind = kind_of(path)
    has_docstrings = kind == "code" and path.suffix == ".py"
    if kind not in wanted and not (has_docstrings and "prose" in wanted):
        return
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return
    if has_docstrings:
        for docstring in docstrings_of(text):
            if "prose" in wanted:
                yield from (("prose", piece) for piece in cut(docstring))
            text = text.replace(docstring, "", 1)
    if kind in wanted:
        yield from ((kind, piece) for piece in cut(text))


def kind_of(path: Path) -> str:
    if path.name == "RECORD" or "encodings" in path.parts:
        return "noise"
    if path.name in ("METADATA", "LICENSE", "COPYING") or "pydoc_data" in path.parts:
        return "prose"
    return next(kind for kind, suffixes in SUFFIXES.items() if path.suffix.lower() in suffixes)


def docstrings_of(source: str) -> Iterator[str]:
    """The longer docstrings of a module, as they stand in the source."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring and len(docstring) >= 2 * MIN_CHARACTERS:
                yield docstring


def cut(text: str) -> Iterator[str]:
    """Pieces of whole lines, of at most PIECE_CHARACTERS where the lines allow; longer lines are cut."""
    piece = ""
    for line in text.splitlines(keepends=True):
        while len(line) > PIECE_CHARACTERS:
            head, line = line[:PIECE_CHARACTERS], line[PIECE_CHARACTERS:]
            if len(piece.strip()) >= MIN_CHARACTERS:
                yield piece
            yield head
            piece = ""
        if len(piece) + len(line) > PIECE_CHARACTERS:
            if len(piece.strip()) >= MIN_CHARACTERS:
                yield piece
            piece = ""
        piece += line
    if len(piece.strip()) >= MIN_CHARACTERS:
        yield piece


def digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def write(path: Path, documents: list[dict[str, str]]) -> None:
    with open(path, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(document, ensure_ascii=False) + "\n" for document in documents)


if __name__ == "__main__":
    main()
