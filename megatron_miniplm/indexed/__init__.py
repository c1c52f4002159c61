"""Megatron's `.bin/.idx` format: a validated reader, a streaming writer, views over someone else's `.bin`, merging.

    writer ──► <prefix>.bin + <prefix>.idx ◄── reader
      │             ▲     + <prefix>.documents.parquet ◄── sidecar: which text every sequence holds
      │             └─ relative symlink ── <view>.bin + <view>.idx ◄── view   (no token is copied)
      └── merge, copying: several corpora and views into one; materialize: each into a corpus of its own

`prefix_files` keeps one writer per prefix and removes stale index caches of Megatron's; `existing` recognises finished
output.
NumPy only, but for the sidecar (pyarrow). The bytes are described in docs/formats.md; those of `.bin` and `.idx` are
`megatron.core.datasets.indexed_dataset`'s.
"""

from megatron_miniplm.indexed.reader import IndexedCorpus
from megatron_miniplm.indexed.view import write_view
from megatron_miniplm.indexed.writer import IndexedWriter

__all__ = ["IndexedCorpus", "IndexedWriter", "write_view"]
