"""A view that is trained on is compared with its manifest, once for every index cache directory.

Megatron reads the `.idx` of a view and believes it. Comparing it reads it once (20 bytes per sequence, 1 GB/s), on rank
0 alone. A receipt beside the index caches says for which file that was done, so that a restart does not repeat it.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.atomic import write_json
from megatron_miniplm.artifacts.manifest import load_manifest, prefix_manifest_path
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path, idx_path
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


def _stat(path: Path) -> dict[str, Any]:
    found = path.stat()
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "inode": found.st_ino}
