"""Train a tokenizer on JSONL text that Megatron and `miniplm preprocess-data` load.

  miniplm train-tokenizer --input text.jsonl --vocab-size 32000 --type bpe --output tokenizer

`bpe` is a HuggingFace byte-level BPE: --tokenizer-type HuggingFaceTokenizer --tokenizer-model tokenizer
`sentencepiece` is a BPE with byte fallback: --tokenizer-type SentencePieceTokenizer --tokenizer-model
tokenizer/tokenizer.model
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--input", nargs="+", type=Path, required=True, metavar="PATH", help="as of preprocess-data: JSONL or Parquet"
    )
    parser.add_argument("--json-keys", nargs="+", default=["text"], metavar="KEY", help="keys that hold text")
    parser.add_argument(
        "--vocab-size", type=int, required=True, metavar="V", help="number of tokens, including special tokens"
    )
    parser.add_argument(
        "--max-line-bytes", type=int, default=256 << 20, metavar="N", help="refuse a longer line (default: 256 MiB)"
    )
    parser.add_argument("--type", choices=("bpe", "sentencepiece"), required=True, help="kind of tokenizer, see above")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="directory to write the tokenizer to")
    parser.add_argument(
        "--max-bytes",
        type=int,
        metavar="N",
        help="stop reading after N bytes of text: both kinds hold the text in memory",
    )


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer

    settings = TrainingSettings(
        algorithm=arguments.type,
        vocab_size=arguments.vocab_size,
        json_keys=tuple(dict.fromkeys(arguments.json_keys)),
        max_bytes=arguments.max_bytes,
        max_line_bytes=arguments.max_line_bytes,
    )
    manifest = train_tokenizer(arguments.input, arguments.output, settings)
    print(f"{arguments.output}: {manifest.counts['vocab_size']:,} tokens")
