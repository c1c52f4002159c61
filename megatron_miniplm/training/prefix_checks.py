"""What is checked of a prefix around Megatron's own builder: whether a view is intact, and whether a cache is stale.

Megatron reads the `.idx` of a view and believes it. Comparing it reads it once (20 bytes per sequence, 1 GB/s), on rank
0 alone. A receipt beside the index caches says for which file that was done, so that a restart does not repeat it.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron.core.datasets.gpt_dataset import GPTDataset

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.manifest import load_manifest, prefix_manifest_path
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path, idx_path, refuse_too_many
from megatron_miniplm.mcore.program import say_once
from megatron_miniplm.training.index_cache import DESCRIPTION, is_older
from megatron_miniplm.training.refinement import OBJECT_STORAGE

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
    if not isinstance(dataset, GPTDataset) or hasattr(dataset.config, "miniplm"):
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
