"""Encode text into Megatron .bin/.idx pairs, byte for byte what Megatron's tools/preprocess_data.py writes.

  miniplm preprocess-data --input text.jsonl --output-prefix corpus/pile \\
      --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer --append-eod --workers 8

writes corpus/pile_text_document.bin, .idx, .documents.parquet (which document each sequence comes from) and
.manifest.json. Inputs are JSONL files, plain or compressed (gzip, zstd, bzip2, xz), Parquet files,
directories and globs.

--sequence chunk --chunk-length 1025 packs documents into sequences of at most that many tokens, cut at sentence ends
(corpus/pile_text_chunk).

--num-shards N --shard-index K encodes the K-th part of the inputs only; inside a SLURM array both come from
SLURM_ARRAY_TASK_*. Without an index all shards are made, one after the other. Nothing is visible before it is complete;
given again, the same command keeps what is finished and makes the rest.
"""

import argparse
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.commands.shared_flags import (
    add_tokenizer_arguments,
    add_workers_argument,
    tokenizer_settings,
    worker_count,
)
from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    from megatron_miniplm.corpus.build import Shard

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, directories and globs")
    parser.add_argument(
        "--json-keys",
        nargs="+",
        default=["text"],
        metavar="KEY",
        help="keys that hold text, such as text or data.text; one .bin/.idx pair is written per key",
    )
    parser.add_argument("--id-key", metavar="KEY", help="key of the document's id; dots lead into objects")
    parser.add_argument(
        "--domain-key",
        metavar="KEY",
        help="key of the document's domain, such as meta.pile_set_name; chunks keep to one",
    )
    parser.add_argument(
        "--on-bad-line",
        choices=("stop", "skip"),
        default="stop",
        help="skip lists bad lines in <PREFIX>_<KEY>_document.rejected.jsonl (default: stop at the first)",
    )
    parser.add_argument(
        "--max-line-bytes",
        type=int,
        default=256 << 20,
        metavar="N",
        help="a longer line is a bad line, and is never held in memory (default: 256 MiB)",
    )
    parser.add_argument(
        "--output-prefix",
        type=Path,
        required=True,
        metavar="PREFIX",
        help="writes <PREFIX>_<KEY>_document.bin and .idx, or _chunk",
    )
    add_tokenizer_arguments(parser)
    parser.add_argument("--append-eod", action="store_true", help="end every document with the end-of-document token")
    parser.add_argument(
        "--sequence",
        choices=("document", "chunk"),
        default="document",
        help="one sequence per document or per chunk, see above",
    )
    parser.add_argument("--chunk-length", type=int, metavar="N", help="maximum tokens per chunk; the paper uses 1025")
    parser.add_argument(
        "--sentence-model",
        type=Path,
        metavar="DIR",
        help="a Punkt model as NLTK saves it (punkt_tab); by default one is trained on the first texts",
    )
    _add_shards(parser)
    add_workers_argument(parser)
    ignored = parser.add_argument_group("as Megatron's tool has them", "accepted, so that job scripts need no change")
    ignored.add_argument("--partitions", type=int, metavar="N", help="ignored: memory is bounded anyway")
    ignored.add_argument("--keep-sequential-samples", action="store_true", help="ignored: the order is always kept")
    ignored.add_argument("--log-interval", type=int, metavar="N", help="ignored: progress is reported by time")


def _add_shards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-shards", type=int, metavar="N", help="number of parts to split the input into")
    parser.add_argument(
        "--shard-by",
        choices=("bytes", "files"),
        default="bytes",
        help="split into parts of equal bytes, or of equal numbers of files: a file that changes then "
        "affects its own part only",
    )
    parser.add_argument("--shard-index", type=int, metavar="K", help="part to process, counted from 0")


def run(arguments: argparse.Namespace) -> None:
    num_workers = worker_count(arguments)
    from megatron_miniplm.corpus.build import BuildSettings, build_corpus

    if (arguments.chunk_length is None) == (arguments.sequence == "chunk"):
        raise InputError("--sequence chunk and --chunk-length belong together: give both (the paper's is 1025) or none")
    settings = BuildSettings(
        inputs=tuple(arguments.input),
        output_prefix=arguments.output_prefix,
        json_keys=tuple(dict.fromkeys(arguments.json_keys)),
        tokenizer=tokenizer_settings(arguments),
        append_eod=arguments.append_eod,
        id_key=arguments.id_key,
        domain_key=arguments.domain_key,
        chunk_length=arguments.chunk_length,
        sentence_model=arguments.sentence_model,
        skip_bad_lines=arguments.on_bad_line == "skip",
        max_line_bytes=arguments.max_line_bytes,
    )
    shards = choose_shards(arguments.num_shards, arguments.shard_index, os.environ, arguments.shard_by == "files")
    for prefix, manifest in build_corpus(settings, num_workers=num_workers, shards=shards).items():
        print(f"{prefix}: {describe_counts(manifest.counts, arguments.chunk_length)}")
        if not manifest.counts["num_tokens"]:
            logger.warning("warning: %s has no tokens: its part of the input holds no text", prefix)


def describe_counts(counts: dict[str, int], chunk_length: int | None) -> str:
    """One line of results."""
    parts = [f"{counts['num_documents']:,} documents", f"{counts['num_tokens']:,} tokens"]
    if chunk_length is not None:
        fill = counts["num_tokens"] / max(1, counts["num_sequences"] * chunk_length)
        parts.append(f"{counts['num_sequences']:,} chunks, {fill:.1%} full")
    if counts["num_empty_documents"]:
        parts.append(f"{counts['num_empty_documents']:,} of the documents without a token")
    if rejected := counts.get("num_rejected_lines"):
        parts.append(f"{rejected:,} bad lines skipped")
    return ", ".join(parts)


def choose_shards(
    num_shards: int | None, index: int | None, environment: Mapping[str, str], by_files: bool = False
) -> "list[Shard]":
    """The shards that this process makes, from the flags, else from the SLURM array that it is a task of.

    Raises:
        InputError: the index is none of the shards', or the array does not count from 0.
    """
    from megatron_miniplm.corpus.build import WHOLE, Shard

    task = environment.get("SLURM_ARRAY_TASK_ID")
    if num_shards is None and index is None and task is not None:
        num_shards = _tasks_of_whole_array(environment)
    if num_shards is None:
        if index is not None:
            raise InputError("--shard-index needs --num-shards")
        return [WHOLE]
    if num_shards < 1:
        raise InputError(f"--num-shards {num_shards} makes no shard: give at least 1")
    if index is None:
        if task is None:
            return [Shard(index=each, count=num_shards, by_files=by_files) for each in range(num_shards)]
        index = _array_number(environment, "SLURM_ARRAY_TASK_ID")
    if not 0 <= index < num_shards:
        raise InputError(f"shard {index} is none of {num_shards}: they count from 0 to {num_shards - 1}")
    return [Shard(index=index, count=num_shards, by_files=by_files)]


def _tasks_of_whole_array(environment: Mapping[str, str]) -> int:
    """The number of tasks of the SLURM array.

    Raises:
        InputError: the array is not 0 to N - 1 without gaps, so its tasks do not say how many shards there are.
    """
    first, last, count = (_array_number(environment, f"SLURM_ARRAY_TASK_{name}") for name in ("MIN", "MAX", "COUNT"))
    if first != 0 or count != last - first + 1:
        raise InputError(
            f"this SLURM array has {count} tasks from {first} to {last}, expected all from 0 to N - 1: submit "
            "--array=0-(N-1), or give --num-shards N to run some tasks of such an array again"
        )
    return count


def _array_number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name)
    if value is None or not value.isascii() or not value.isdigit():
        found = "not set" if value is None else repr(value)
        raise InputError(f"{name} is {found}, expected a number: give --num-shards and --shard-index instead")
    return int(value)
