"""Show the progress of a directory of scores, or export a finished one for DuckDB, Polars or pandas."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.scores import ScoreStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument(
        "--to-parquet", type=Path, metavar="FILE", help="write columns prefix, sequence, nll (sum, nats), num_tokens"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> None:
    store = ScoreStore.open(arguments.directory)
    if arguments.to_parquet:
        store.require_complete()
        write_parquet(store, arguments.to_parquet)
    status = describe(store)
    if arguments.json:
        print(json.dumps(status, indent=2))
        return
    done = status["num_blocks"] - status["num_missing_blocks"]
    print(f"{store.directory}: {done} of {status['num_blocks']} blocks, {status['num_sequences']:,} sequences")
    if status["mean_nll"] is not None:
        print(f"{status['num_tokens']:,} scored tokens, {status['mean_nll']:.4f} nats a token")
    if arguments.to_parquet:
        print(f"wrote {arguments.to_parquet}")


def describe(store: ScoreStore) -> dict[str, Any]:
    """Counts and the mean NLL over the finished blocks."""
    missing = store.missing_blocks()
    nll, num_tokens = 0.0, 0
    for block in sorted(set(range(store.plan.num_blocks)) - set(missing)):
        scores = store.read_block(block)
        nll += float(scores["nll"].sum(dtype=np.float64))
        num_tokens += int(scores["num_tokens"].sum(dtype=np.int64))
    return {
        "num_sequences": store.plan.num_sequences,
        "num_blocks": store.plan.num_blocks,
        "num_missing_blocks": len(missing),
        "num_tokens": num_tokens,
        "mean_nll": nll / num_tokens if num_tokens else None,
    }


def write_parquet(store: ScoreStore, path: Path) -> None:
    """One row a sequence, one row group a block; `sequence` counts from 0 in each prefix."""
    import pyarrow as pa
    from pyarrow import parquet

    from megatron_miniplm.artifacts.atomic import atomic_output

    corpus = store.identity["corpus"]
    stops = np.cumsum([prefix["num_sequences"] for prefix in corpus])
    starts = stops - [prefix["num_sequences"] for prefix in corpus]
    names = pa.array([prefix["name"] for prefix in corpus])
    schema = pa.schema(
        [
            ("prefix", pa.dictionary(pa.int32(), pa.string())),
            ("sequence", pa.int64()),
            ("nll", pa.float32()),
            ("num_tokens", pa.int32()),
        ]
    )
    with atomic_output(path) as stream, parquet.ParquetWriter(stream, schema) as writer:
        for block, scores in enumerate(store.blocks()):
            ids = np.asarray(store.plan.sequences(block))
            prefix = np.searchsorted(stops, ids, side="right").astype(np.int32)
            columns = [
                pa.DictionaryArray.from_arrays(pa.array(prefix), names),
                pa.array(ids - starts[prefix]),
                pa.array(scores["nll"]),
                pa.array(scores["num_tokens"]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
