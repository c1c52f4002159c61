"""Whether what a command would write lies there already."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, load_manifest, prefix_manifest_path
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.layout import bin_path, idx_path
from megatron_miniplm.indexed.prefix_files import how_to_replace, stale_caches
from megatron_miniplm.indexed.reader import IndexedCorpus
from megatron_miniplm.indexed.writer import IndexedWriter

logger = logging.getLogger(__name__)


def existing_corpus(
    prefix: Path,
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    inputs: Sequence[ArtifactInput],
    output_flag: str,
) -> Manifest | None:
    """The manifest of a prefix that was made of the same inputs with the same settings; None if it is to be made.

    Args:
        output_flag: the flag that names the output, for the remedy.

    Raises:
        InputError: something else lies under the prefix.
    """
    remedy = how_to_replace(prefix, output_flag)
    if not prefix_manifest_path(prefix).exists():
        for path in (bin_path(prefix), idx_path(prefix)):
            if (path.exists() or path.is_symlink()) and not IndexedWriter.was_killed(prefix):
                raise InputError(
                    f"{path} exists without {prefix_manifest_path(prefix).name}, so it is another tool's: {remedy}"
                )
        return None
    manifest = load_manifest(prefix)
    wanted, found = ([(parent.role, parent.fingerprint) for parent in each] for each in (inputs, manifest.inputs))
    if (manifest.settings, manifest.versions, found) != (settings, versions, wanted):
        raise InputError(f"{prefix} was made from other inputs or settings than those given now: {remedy}")
    if IndexedCorpus.open(prefix).fingerprint() != manifest.fingerprint:
        raise InputError(f"{prefix} has changed since it was made: {remedy}")
    IndexedWriter.remove_leftovers(prefix)
    for cache in stale_caches(prefix):
        logger.warning("%s is older than %s, and may be of another corpus: delete it before training", cache, prefix)
    logger.info("%s is complete already, from the same inputs and settings: nothing to do", prefix)
    return manifest
