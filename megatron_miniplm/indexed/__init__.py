"""Megatron's `.bin/.idx` format: a validated reader, a streaming writer, and views over someone else's `.bin`.

    writer ──► <prefix>.bin + <prefix>.idx ◄── reader
                    ▲
                    └─ relative symlink ── <view>.bin + <view>.idx ◄── view   (no token is copied)

NumPy only. The bytes are described in docs/formats.md and are those of `megatron.core.datasets.indexed_dataset`.
"""

from megatron_miniplm.indexed.reader import IndexedCorpus
from megatron_miniplm.indexed.view import write_view
from megatron_miniplm.indexed.writer import IndexedWriter

__all__ = ["IndexedCorpus", "IndexedWriter", "write_view"]
