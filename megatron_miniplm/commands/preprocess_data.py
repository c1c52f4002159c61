"""Encode JSONL text into Megatron .bin/.idx pairs, byte for byte what Megatron's tools/preprocess_data.py writes.

  miniplm preprocess-data --input text.jsonl --output-prefix corpus/pile \\
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer --append-eod --workers 8

writes corpus/pile_text_document.bin, .idx and .manifest.json. Nothing is visible before it is complete; given again,
the same command finds its work done.
"""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="FILE", help="JSONL files, one document a line"
    )
    parser.add_argument(
        "--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys that hold text; one pair is written a key"
    )
    parser.add_argument(
        "--output-prefix",
        type=Path,
        required=True,
        metavar="PREFIX",
        help="writes <PREFIX>_<KEY>_document.bin and .idx",
    )
    parser.add_argument(
        "--tokenizer-type", required=True, metavar="TYPE", help="HuggingFaceTokenizer or SentencePieceTokenizer"
    )
    parser.add_argument(
        "--tokenizer-model",
        type=Path,
        required=True,
        metavar="PATH",
        help="a directory with tokenizer.json, or a .model",
    )
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="encoder threads, all cores by default; the output does not depend on it",
    )


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.corpus.build import BuildSettings, build_corpus
    from megatron_miniplm.errors import InputError

    if arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers} cannot encode: give at least 1")
    settings = BuildSettings(
        inputs=tuple(arguments.input),
        output_prefix=arguments.output_prefix,
        json_keys=tuple(dict.fromkeys(arguments.json_keys)),
        tokenizer_type=arguments.tokenizer_type,
        tokenizer_model=arguments.tokenizer_model,
        append_eod=arguments.append_eod,
    )
    for prefix, manifest in build_corpus(settings, num_threads=arguments.workers).items():
        counts = manifest.counts
        print(f"{prefix}: {counts['num_documents']:,} documents, {counts['num_tokens']:,} tokens")
