#!/usr/bin/env python3
"""The fastest obvious way without this project: HF tokenizers on batches of documents, Megatron's writer.

One process; `encode_batch_fast` (no offsets) spreads a batch over threads, the parent parses JSON and writes.
"""

import argparse
import json
import os
from collections.abc import Iterator
from itertools import batched
from pathlib import Path

DOCUMENTS_A_BATCH = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, metavar="FILE", help="JSONL with the key text")
    parser.add_argument("--output-prefix", required=True, metavar="PREFIX", help="writes <PREFIX>_text_document")
    parser.add_argument("--tokenizer-model", type=Path, required=True, metavar="DIR", help="holds tokenizer.json")
    parser.add_argument("--append-eod", action="store_true")
    parser.add_argument("--workers", type=int, required=True, metavar="N", help="threads")
    arguments = parser.parse_args()
    os.environ["RAYON_NUM_THREADS"] = str(arguments.workers)  # read when the first batch is encoded

    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(arguments.tokenizer_model / "tokenizer.json"))
    config = json.loads((arguments.tokenizer_model / "tokenizer_config.json").read_text(encoding="utf-8"))
    eod_id = tokenizer.get_vocab()[config["eos_token"]]
    prefix = f"{arguments.output_prefix}_text_document"
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(tokenizer.get_vocab_size()))
    for texts in batched(read_texts(arguments.input), DOCUMENTS_A_BATCH):
        for encoding in tokenizer.encode_batch_fast(texts):
            tokens = encoding.ids
            if tokens and arguments.append_eod:
                tokens.append(eod_id)
            builder.add_document(tokens, [len(tokens)] if tokens else [])
    builder.finalize(f"{prefix}.idx")


def read_texts(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


if __name__ == "__main__":
    main()
