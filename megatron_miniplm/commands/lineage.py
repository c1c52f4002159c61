"""Print where an artifact comes from: the tree from it down to raw files and checkpoints, as manifests record it.

PATH is the prefix of a .bin/.idx pair or a directory with a manifest.json. Every line names what a parent was used as,
its path, kind, counts and fingerprint; parents that are gone, or have changed since they were used, say so.
`miniplm inspect PATH --check` compares contents as well.
"""

import argparse
from dataclasses import asdict
from pathlib import Path

from megatron_miniplm.artifacts.lineage import lineage_lines, trace_lineage
from megatron_miniplm.artifacts.manifest import is_prefix, load_manifest
from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.terminal import printable_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="prefix (without .bin or .idx), or directory")
    parser.add_argument("--json", action="store_true", help="print nested JSON objects instead of text")


def run(arguments: argparse.Namespace) -> None:
    path = arguments.path
    if path.suffix in (".bin", ".idx") and is_prefix(path.with_suffix("")):
        raise InputError(f"{path} is one half of a pair: give its prefix {path.with_suffix('')}")
    load_manifest(path)  # an artifact without one has no lineage that is known
    if arguments.json:
        print(printable_json(asdict(trace_lineage(path))))
    else:
        print("\n".join(lineage_lines(path)))
