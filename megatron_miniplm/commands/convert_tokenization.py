"""Convert a corpus or a selection to another tokenizer, to train a student of another model family on it.

  miniplm convert-tokenization --input refined --output student_corpus \\
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model student_tokenizer --workers 8

writes one prefix of the same name for each prefix of the input, and student_corpus/data_args.txt. The tokenizer flags
name the new tokenizer. One sequence becomes one sequence, in the same order.

--from text (default) reads the text of every sequence back from the files that the corpus was made from, which its
.documents.parquet names: exact. --from tokens decodes the ids, where those files are gone; sequences whose text may not
be what was encoded are listed in <PREFIX>.round_trip.jsonl. Outputs appear only
when they are complete. To continue a killed run, run the same command again.
"""

import argparse
from pathlib import Path

from megatron_miniplm.commands.shared_flags import (
    TYPES_TEXT,
    add_tokenizer_arguments,
    add_workers_argument,
    tokenizer_settings,
    worker_count,
)
from megatron_miniplm.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PREFIX", help="prefixes, or directories with a data_args.txt"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory to write the new prefixes to"
    )
    parser.add_argument(
        "--from",
        dest="converted_from",
        choices=("text", "tokens"),
        default="text",
        help="convert from the text or from the tokens, see above (default: text)",
    )
    add_tokenizer_arguments(parser)
    source = parser.add_argument_group("source tokenizer", "of the input, with --from tokens")
    source.add_argument(
        "--source-tokenizer-type", metavar="TYPE", help=f"{TYPES_TEXT} (default: what the corpus's manifest says)"
    )
    source.add_argument(
        "--source-tokenizer-model",
        type=Path,
        metavar="PATH",
        help="files of the source tokenizer (default: where the corpus's manifest says)",
    )
    add_workers_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    num_workers = worker_count(arguments)
    from megatron_miniplm.artifacts.data_args import expand_prefixes, require_readable
    from megatron_miniplm.corpus.retokenization.convert import ConversionSettings, convert_prefixes

    given = (arguments.source_tokenizer_type, arguments.source_tokenizer_model)
    if arguments.converted_from == "text" and given != (None, None):
        raise InputError("--source-tokenizer-type and --source-tokenizer-model belong to --from tokens: leave them out")
    settings = ConversionSettings(
        tokenizer=tokenizer_settings(arguments),
        converted_from=arguments.converted_from,
        source_tokenizer_type=arguments.source_tokenizer_type,
        source_tokenizer_model=arguments.source_tokenizer_model,
    )
    prefixes = expand_prefixes(arguments.input)
    require_readable(*(arguments.output / prefix.name for prefix in prefixes))
    for prefix, manifest in convert_prefixes(prefixes, arguments.output, settings, num_workers=num_workers).items():
        print(f"{prefix}: {describe_counts(manifest.counts)}")


def describe_counts(counts: dict[str, int]) -> str:
    """One line of results."""
    parts = [f"{counts['num_sequences']:,} sequences", f"{counts['num_tokens']:,} tokens"]
    if counts["num_empty_sequences"]:
        parts.append(f"{counts['num_empty_sequences']:,} sequences left out that have no token")
    if "num_round_trip_failures" in counts:
        parts.append(f"{counts['num_round_trip_failures']:,} sequences whose text may differ")
    return ", ".join(parts)
