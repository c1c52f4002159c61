"""Split a corpus at random into a reference part and a pool, as views.

The reference model trains on OUTPUT/reference, teacher and reference score OUTPUT/pool, and students train on what is
selected from it. Both directories can be given wherever a prefix can (--corpus), and each holds a
`data_args.txt` for Megatron's --data-args-path.
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
        help="prefixes of the corpus, and directories: the prefixes of its data_args.txt, else all in it by name",
    )
    parser.add_argument(
        "--reference-fraction",
        type=float,
        default=0.05,
        help="fraction of the sequences that goes into the reference part (default: 0.05)",
    )
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.artifacts.data_args import expand_prefixes, prefixes_of, require_readable
    from megatron_miniplm.selection.split import split_reference

    require_readable(arguments.output)
    counts = split_reference(
        expand_prefixes(prefixes_of(arguments.input)),
        arguments.output,
        reference_fraction=arguments.reference_fraction,
        seed=arguments.seed,
    )
    print(
        f"{arguments.output}: {counts['num_reference_sequences']:,} sequences in reference/, "
        f"{counts['num_pool_sequences']:,} in pool/"
    )
