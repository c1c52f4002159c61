"""Flags that several commands share: Megatron's flags of a tokenizer, with its defaults, and `--workers`."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings


TYPES_TEXT = (
    "HuggingFaceTokenizer, SentencePieceTokenizer, GPTSentencePieceTokenizer, Llama2Tokenizer, TikTokenizer, "
    "GPT2BPETokenizer or NullTokenizer"
)


def add_tokenizer_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tokenizer", "as Megatron's flags of the same names")
    group.add_argument("--tokenizer-type", required=True, metavar="TYPE", help=TYPES_TEXT)
    group.add_argument(
        "--tokenizer-model",
        type=Path,
        metavar="PATH",
        help="a directory with tokenizer.json, a SentencePiece .model, or a JSON file of tiktoken ranks",
    )
    group.add_argument("--vocab-file", type=Path, metavar="FILE", help="vocab.json of GPT2BPETokenizer")
    group.add_argument("--merge-file", type=Path, metavar="FILE", help="merges.txt of GPT2BPETokenizer")
    group.add_argument(
        "--vocab-size",
        type=int,
        metavar="V",
        help="vocabulary size of TikTokenizer (default: 131072) or NullTokenizer, including special tokens",
    )
    group.add_argument(
        "--tiktoken-pattern",
        choices=("v1", "v2"),
        default="v2",
        help="pattern by which TikTokenizer splits text (default: v2)",
    )
    group.add_argument(
        "--tiktoken-num-special-tokens",
        type=int,
        default=1000,
        metavar="N",
        help="ids that TikTokenizer reserves for special tokens (default: 1000)",
    )
    group.add_argument(
        "--tokenizer-special-tokens", nargs="+", default=(), metavar="TOKEN", help="special tokens to add, by content"
    )
    group.add_argument(
        "--null-tokenizer-eod-id",
        type=int,
        metavar="ID",
        help="end-of-document id of NullTokenizer (default: vocabulary size - 1)",
    )
    group.add_argument(
        "--split-special-tokens",
        action="store_true",
        help="encode special tokens in the text like any other text; Megatron encodes each as one id",
    )


def add_decoding_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """Two flags that name a tokenizer, both optional.

    Args:
        what: they are for.
    """
    group = parser.add_argument_group("tokenizer", what)
    group.add_argument("--tokenizer-type", metavar="TYPE", help=TYPES_TEXT)
    group.add_argument("--tokenizer-model", type=Path, metavar="PATH", help="tokenizer files, as in preprocess-data")


def decoder_of(arguments: argparse.Namespace) -> "TextEncoder | None":
    """The tokenizer that `add_decoding_arguments` has read; None without one.

    Raises:
        InputError: the flags do not name a tokenizer.
    """
    if arguments.tokenizer_model is not None and arguments.tokenizer_type is None:
        raise InputError("--tokenizer-model needs --tokenizer-type: give both")
    if arguments.tokenizer_type is None:
        return None
    from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder

    return load_encoder(arguments.tokenizer_type, arguments.tokenizer_model, num_threads=1)


def tokenizer_settings(arguments: argparse.Namespace) -> "TokenizerSettings":
    """What `add_tokenizer_arguments` has read."""
    from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings

    return TokenizerSettings(
        tokenizer_type=arguments.tokenizer_type,
        tokenizer_model=arguments.tokenizer_model,
        vocab_file=arguments.vocab_file,
        merge_file=arguments.merge_file,
        vocab_size=arguments.vocab_size,
        tiktoken_pattern=arguments.tiktoken_pattern,
        tiktoken_num_special_tokens=arguments.tiktoken_num_special_tokens,
        special_tokens=tuple(arguments.tokenizer_special_tokens),
        null_tokenizer_eod_id=arguments.null_tokenizer_eod_id,
        split_special_tokens=arguments.split_special_tokens,
    )


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
