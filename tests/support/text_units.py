"""Text files that are read unit by unit."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Documents, UnitReader
from megatron_miniplm.corpus.sources import expand_inputs, shard_spans
from megatron_miniplm.corpus.units import units_of


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def compress(path: Path, suffix: str) -> Path:
    """A compressed twin of a file."""
    twin = path.with_name(path.name + suffix)
    with pyarrow.output_stream(str(twin), compression={".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        stream.write(path.read_bytes())
    return twin


def read_units(path: Path, fields: Fields, num_shards: int = 1) -> list[Documents]:
    reader = UnitReader(fields)
    spans = [span for shard in range(num_shards) for span in shard_spans(expand_inputs([path]), shard, num_shards)]
    return [reader.read(unit) for span in spans for unit in units_of(span, fields)]


def read(path: Path, fields: Fields = Fields(text_keys=("text",))) -> list[str]:  # noqa: B008
    return [text for documents in read_units(path, fields) for text in documents.texts["text"]]


def write_parquet(path: Path, columns: dict[str, list[Any]], row_group_size: int) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path
