"""Megatron's index caches, written whole and by one process at a time.

Megatron takes a cache for good if its files exist (core/datasets/gpt_dataset.py:496, blended_dataset.py:140), writes
them in place, and lets rank 0 alone write: a killed job leaves halves that count as a hit, two jobs write into each
other, and nodes with a cache on a local disk find nothing. Here a set of arrays appears under Megatron's own names, its
description last, so that what Megatron takes for a hit is one.

Megatron also believes the `.idx` of a view. Rank 0 compares it with its manifest once (20 bytes per sequence, 1 GB/s);
a receipt beside the index caches says for which file that was done, so that a restart does not repeat it.
"""

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, atomic_output, write_json, write_text
from megatron_miniplm.artifacts.manifest import load_manifest, prefix_manifest_path
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path, idx_path, refuse_too_many
from megatron_miniplm.mcore.program import say_once
from megatron_miniplm.training.refinement import OBJECT_STORAGE

logger = logging.getLogger(__name__)

DESCRIPTION = "description.txt"


def is_older(path: Path, other: Path) -> bool:
    """Whether both are there and `path` was written before `other`; paths in object storage are not there."""
    try:
        return path.stat().st_mtime_ns < other.stat().st_mtime_ns
    except OSError:
        return False


def unwritable_cache(error: OSError, directory: Path | str) -> InputError:
    """What to do where an index cache cannot be written."""
    return InputError(
        f"{error.filename or directory}: the index cache of the data cannot be written ({error.strerror or error}): "
        "give --data-cache-path DIR, a directory that all ranks can write"
    )


@dataclass(frozen=True, kw_only=True)
class IndexCache:
    """The files of one dataset.

    Attributes:
        directory: for `--data-cache-path`, or Megatron's choice beside the data.
        stem: what Megatron's names begin with: hash of the description, class, split.
        description: what the hash is of.
        names: of the arrays, without `.npy`.
        is_trusted: only look for the description, as `--dataloader-fast-cache-load` asks for: one file, not all.
    """

    directory: Path
    stem: str
    description: str
    names: tuple[str, ...]
    is_trusted: bool = False

    def is_complete(self) -> bool:
        """Whether all is there as it was published; a file that something else has cut off counts as missing."""
        if self.is_trusted:
            return self.path(DESCRIPTION).is_file()
        try:
            if self.path(DESCRIPTION).read_text(encoding="utf-8") != self.description:
                return False
            for name in self.names:
                np.load(self.path(f"{name}.npy"), mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return False
        return True

    def ensure(self, build: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Build and publish what is missing; of several processes one builds, and the others wait for it.

        Raises:
            InputError: the directory cannot be written.
        """
        if self.is_complete():
            return
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._alone():
                if not self.is_complete():
                    self._sweep()
                    self._publish(build())
        except OSError as error:
            raise unwritable_cache(error, self.directory) from error

    def _publish(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name in self.names:
            with atomic_output(self.path(f"{name}.npy")) as stream:
                np.lib.format.write_array(stream, arrays[name], version=(1, 0), allow_pickle=False)
        write_text(self.path(DESCRIPTION), self.description)

    def _sweep(self) -> None:
        """Remove what killed builders have left; only called while nobody else builds."""
        for stale in self.directory.glob(f".{self.stem}-*{TEMPORARY_SUFFIX}"):
            stale.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of these files; the kernel frees it when the process dies.

        Where a file system has no locks, several may build: each publishes the same bytes by renaming.
        """
        with open(self.path("lock"), "ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for the process that builds %s", self.stem)
                fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError as error:
                logger.info("no lock on %s (%s)", self.directory, error.strerror)
            yield

    def path(self, name: str) -> Path:
        return Path(os.path.join(self.directory, f"{self.stem}-{name}"))


RECEIPT_SUFFIX = "-verified.json"


def verify_view(path: str, cache_dir: Path) -> None:
    """Compare index and data of a view with its manifest; what is no view, or was compared before, is left alone.

    Args:
        path: a prefix of the blend.
        cache_dir: of the index caches; need not exist.

    Raises:
        CorruptArtifactError: the view is not what was written, or points into other data.
    """
    prefix = Path(path)
    if int(os.environ.get("RANK", "0")) != 0 or path.startswith(OBJECT_STORAGE):
        return
    if not prefix_manifest_path(prefix).exists() or (manifest := load_manifest(prefix)).kind != "view":
        return
    receipt = cache_dir / f"{prefix.name}{RECEIPT_SUFFIX}"
    expected = {"fingerprint": manifest.fingerprint, "files": [_stat(idx_path(prefix)), _stat(bin_path(prefix))]}
    with suppress(OSError, ValueError):
        if json.loads(receipt.read_text(encoding="utf-8")) == expected:
            return
    IndexedCorpus.open(prefix).verified_fingerprint()
    with suppress(OSError):  # Megatron will say what is wrong with the directory
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(receipt, expected)


def check_prefix_of(cls: Any, args: tuple[Any, ...]) -> None:
    """Check a prefix before it is trained on; `args` are those of the class, such as `GPTDataset`.

    Raises:
        InputError: it has more sequences than Megatron can number.
        CorruptArtifactError: it is a view, and not what was written.
    """
    if isinstance(cls, type) and issubclass(cls, GPTDataset) and len(args) > 1 and isinstance(args[1], str):
        refuse_too_many(args[1], len(args[0].sequence_lengths))
        cache = getattr(args[-1], "path_to_cache", None) or os.path.join(args[1], "cache", f"{cls.__name__}_indices")
        verify_view(args[1], Path(cache))


def warn_of_stale_cache(dataset: Any) -> None:
    """Say that a cache was made before the index that it is of was written: Megatron knows prefixes by path alone.

    Args:
        dataset: built just now; other kinds than `GPTDataset` are passed over.
    """
    if not isinstance(dataset, GPTDataset) or hasattr(dataset, "refined"):
        return  # ours compares the corpus
    directory, index = cache_directory(dataset), Path(f"{dataset.dataset_path}.idx")
    stem = f"{dataset.unique_description_hash}-{type(dataset).__name__}-{dataset.index_split.name}"
    if is_older(directory / f"{stem}-{DESCRIPTION}", index):
        say_once(
            f"warning: the index cache {directory}/{stem}-* is older than {index}: if the corpus was made anew under "
            "the name of another, training reads other sequences than it has; delete the cache, and it is built again"
        )


def cache_directory(dataset: GPTDataset) -> Path:
    """Where Megatron keeps the cache of a dataset, as core/datasets/gpt_dataset.py:475 has it."""
    if dataset.config.path_to_cache is not None:
        return Path(dataset.config.path_to_cache)
    return Path(os.path.join(dataset.dataset.path_prefix, "cache", f"{type(dataset).__name__}_indices"))


def _stat(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "inode": found.st_ino}
