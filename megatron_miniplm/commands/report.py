"""Write an HTML page about a selection: what was kept, from where, with example texts.

  miniplm report selection --output report

writes report/report.html, one page without any other file or network, and its plots as report/*.png: counts by prefix,
domain, source and length, histograms of both models' NLLs and of the difference, texts with the greatest and the lowest
difference and those next to the threshold, and what other ratios would keep. Scores, corpora and original texts must
still be where they were when the selection was made.
"""

import argparse
from pathlib import Path

from megatron_miniplm.commands.shared_flags import add_decoding_arguments, decoder_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("selection", type=Path, metavar="SELECTION", help="directory that difference-sampling wrote")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write the report to")
    parser.add_argument(
        "--examples",
        type=int,
        default=10,
        metavar="N",
        help="number of example texts of each kind, up to 50 (default: 10)",
    )
    parser.add_argument(
        "--compare",
        nargs="+",
        type=Path,
        default=[],
        metavar="SELECTION",
        help="other selections of the same corpus: report their overlap with this one",
    )
    add_decoding_arguments(parser, "decodes examples whose original text is gone (default: token ids)")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.reports.report import REPORT, write_report

    tally = write_report(
        arguments.selection,
        arguments.output,
        num_examples=arguments.examples,
        compared=arguments.compare,
        encoder=decoder_of(arguments),
    )
    counts = tally.prefixes
    print(
        f"{arguments.output / REPORT}: {int(counts.kept_sequences.sum()):,} of {int(counts.sequences.sum()):,} "
        f"sequences, {int(counts.kept_tokens.sum()):,} of {int(counts.tokens.sum()):,} tokens"
    )
