"""Merge corpora and views into one .bin/.idx pair, or list them in one directory.

  miniplm merge-datasets --input shards --output-prefix corpus/pile_text_document

writes the bytes of Megatron's tools/merge_datasets.py, and the .documents.parquet if all inputs have one. The shards of
preprocess-data --num-shards must all be there; they are put in order and become the corpus of a run without shards.
Views are copied sequence by sequence, as they must be where there are no symbolic links.

--as-data-args DIR copies nothing: DIR then stands for all of the inputs wherever a prefix can be given, and its
data_args.txt is for Megatron's --data-args-path.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input",
        nargs="+",
        type=Path,
        required=True,
        metavar="PREFIX",
        help="prefixes (an .idx file stands for its prefix, so globs work), or directories: the "
        "prefixes in their data_args.txt, or else all prefixes in them, by name",
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output-prefix", type=Path, metavar="PREFIX", help="prefix of the merged copy")
    output.add_argument("--as-data-args", type=Path, metavar="DIR", help="write DIR/data_args.txt instead of a copy")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.indexed.merge import blend_prefixes, merge_prefixes

    prefixes = _prefixes(arguments.input, arguments.output_prefix)
    if arguments.output_prefix is not None:
        output, manifest = arguments.output_prefix, merge_prefixes(prefixes, arguments.output_prefix)
    else:
        output, manifest = arguments.as_data_args, blend_prefixes(prefixes, arguments.as_data_args)
    counts = manifest.counts
    print(
        f"{output}: {counts['num_sequences']:,} sequences, {counts['num_tokens']:,} tokens of {len(prefixes)} prefixes"
    )


def _prefixes(inputs: list[Path], output_prefix: Path | None) -> list[Path]:
    """The prefixes that the inputs stand for; in a directory, the output of an earlier run is none of them."""
    from megatron_miniplm.artifacts.data_args import expand_prefixes, prefixes_of

    return expand_prefixes(prefixes_of(inputs, without=output_prefix))
