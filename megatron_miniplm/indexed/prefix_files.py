"""What lies at a prefix before it is written: another writer's lock, and index caches of Megatron's.

The lock is a hidden file that exists while somebody writes; `artifacts.directories` does the same for directories. A
process may ask again for a lock that it holds.

Megatron takes an index cache for good, whatever has become of the prefix since.
Without `--data-cache-path` Megatron puts them into `<prefix>/cache/<class>_indices` (core/datasets/gpt_dataset.py).
Their names are a digest of the path and the settings, not of the content: where another corpus takes the place of a
prefix, training goes on with the documents of the old one.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_miniplm.artifacts.directories import hold_lock, lock_of_file
from megatron_miniplm.indexed.layout import idx_path

logger = logging.getLogger(__name__)

_CACHE_PATTERN = "cache/*_indices"
_FILE_PATTERNS = ("*.npy", "*-description.txt", "*-lock")


def index_caches(prefix: Path) -> list[Path]:
    """The directories of Megatron's index caches beside a prefix."""
    return sorted(path for path in prefix.glob(_CACHE_PATTERN) if path.is_dir()) if prefix.is_dir() else []


def stale_caches(prefix: Path) -> list[Path]:
    """Those that hold something older than the `.idx`, and so may be of what lay there before."""
    try:
        written = idx_path(prefix).stat().st_mtime_ns
    except OSError:
        return []
    return [cache for cache in index_caches(prefix) if any(_mtime_ns(file) < written for file in _files(cache))]


def remove_caches(prefix: Path) -> None:
    """Delete Megatron's files from the caches beside a prefix that was written anew; what else lies there stays."""
    for cache in index_caches(prefix):
        for file in _files(cache):
            file.unlink(missing_ok=True)
        for directory in (cache, cache.parent, cache.parent.parent):
            with suppress(OSError):  # not empty
                directory.rmdir()
        logger.warning("removed %s, Megatron's index cache of what was %s before", cache, prefix)


def how_to_replace(prefix: Path, output_flag: str) -> str:
    """What to do where something else lies under a prefix, for an error."""
    caches = index_caches(prefix)
    beside = f"{caches[0].parent} and with " if caches else ""
    return (
        f"choose another {output_flag}, or delete it together with {beside}its index caches in any --data-cache-path, "
        "which Megatron would go on using"
    )


def _files(cache: Path) -> list[Path]:
    return [file for pattern in _FILE_PATTERNS for file in cache.glob(pattern)]


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 1 << 63  # gone meanwhile


_held: set[Path] = set()  # by this process


@contextmanager
def prefix_lock(prefix: Path) -> Iterator[None]:
    """Hold the right to write a prefix.

    Raises:
        InputError: another process holds it, or the lock cannot be opened.
    """
    lock = lock_of_file(prefix).absolute()
    if lock in _held:
        yield
        return
    with hold_lock(lock, prefix):
        _held.add(lock)
        try:
            yield
        finally:
            _held.discard(lock)


def is_locked_or_left(prefix: Path) -> bool:
    """Whether somebody writes a prefix, or was killed while writing it."""
    return lock_of_file(prefix).exists()
