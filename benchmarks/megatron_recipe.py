#!/usr/bin/env python3
"""What Megatron's tools/preprocess_data.py does in document mode, in a page; that script is in no wheel.

A pool of worker processes, each with Megatron's own tokenizer, takes JSONL lines in groups of 32; the parent writes
what comes back with Megatron's IndexedDatasetBuilder. Written from the tool's documentation, for megatron-core 0.19.
"""

import argparse
import json
import multiprocessing
from typing import Any

from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
from megatron.core.tokenizers import MegatronTokenizer

LINES_A_TASK = 32


class Encoder:
    """Encodes a line in a worker process, which keeps its tokenizer on the class: a pool passes no state along."""

    tokenizer: Any = None

    def __init__(self, tokenizer_dir: str, append_eod: bool) -> None:
        self.tokenizer_dir = tokenizer_dir
        self.append_eod = append_eod

    def initialize_worker(self) -> None:
        Encoder.tokenizer = load_tokenizer(self.tokenizer_dir)

    def encode(self, line: str) -> tuple[list[int], list[int]]:
        """The tokens of a document and the lengths of its sequences: one, or none where there are no tokens."""
        tokens = Encoder.tokenizer.tokenize(json.loads(line)["text"])
        if tokens and self.append_eod:
            tokens.append(Encoder.tokenizer.eod)
        return tokens, [len(tokens)] if tokens else []


def load_tokenizer(directory: str) -> Any:
    return MegatronTokenizer.from_pretrained(tokenizer_path=directory, metadata_path={"library": "huggingface"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSONL with the key text")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="writes <PREFIX>_text_document")
    parser.add_argument("--tokenizer-model", required=True, metavar="DIR", help="of a HuggingFaceTokenizer")
    parser.add_argument("--append-eod", action="store_true")
    parser.add_argument("--workers", type=int, required=True, metavar="N")
    arguments = parser.parse_args()

    prefix = f"{arguments.output_prefix}_text_document"
    encoder = Encoder(arguments.tokenizer_model, arguments.append_eod)
    vocab_size = load_tokenizer(arguments.tokenizer_model).vocab_size
    with (
        open(arguments.input, encoding="utf-8") as lines,
        multiprocessing.Pool(arguments.workers, initializer=encoder.initialize_worker) as pool,
    ):
        builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocab_size))
        for tokens, lengths in pool.imap(encoder.encode, lines, LINES_A_TASK):
            builder.add_document(tokens, lengths)
        builder.finalize(f"{prefix}.idx")
        pool.close()
        pool.join()  # reaps the workers, without which their CPU time is nobody's


if __name__ == "__main__":
    main()
