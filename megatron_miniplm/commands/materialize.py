"""Copy selected data out of views: one corpus per prefix, for object storage and clusters without symbolic links.

  miniplm materialize --input selection --output copy

writes copy/<name>.bin/.idx for every view of the selection, with the .documents.parquet if its source has one, and
copy/data_args.txt for Megatron's --data-args-path. Every sequence has the tokens that Megatron reads through the view.
--input takes prefixes of views and corpora, directories with a data_args.txt, and selections made with --index-only,
of which the kept sequences are gathered.

To continue a killed run, run the same command again.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="PATH",
        help="prefixes, directories with a data_args.txt (which stand for the prefixes in it), or "
        "index-only selections",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write the copies to")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.artifacts.data_args import require_readable
    from megatron_miniplm.indexed.materialize import materialize

    require_readable(arguments.output)
    manifest = materialize(arguments.input, arguments.output)
    counts = manifest.counts
    print(
        f"{arguments.output}: {counts['num_sequences']:,} sequences, {counts['num_tokens']:,} tokens in "
        f"{len(manifest.inputs)} corpora"
    )
