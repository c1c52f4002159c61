"""`--workers` of the tools that encode text in several processes."""

import argparse
import os

from megatron_miniplm.errors import InputError


def add_workers_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="number of processes (default: all cores); the output does not depend on it",
    )


def worker_count(arguments: argparse.Namespace) -> int:
    """The checked flag."""
    if arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers} cannot encode: give at least 1")
    return int(arguments.workers)
