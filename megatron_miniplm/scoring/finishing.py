"""The end of a store that several jobs have filled: one of them reads all blocks once more, the others wait."""

import time

from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest, load_manifest, manifest_path
from megatron_miniplm.artifacts.scores import ScoreStore

POLL_SECONDS = 1.0


def missing_at_start(store: ScoreStore) -> list[int]:
    """The missing blocks; a manifest that was there before they were seen to be missing is not true, and removed."""
    had_manifest = store.has_manifest
    missing = store.missing_blocks()
    if missing and had_manifest:
        manifest_path(store.directory).unlink(missing_ok=True)
    return missing


def finish_in_turn(store: ScoreStore, inputs: tuple[ArtifactInput, ...], versions: dict[str, str]) -> Manifest:
    """`ScoreStore.finish` by one of the jobs that call this; returns to all once there is a manifest.

    Reading costs the file server three calls a block: a hundred jobs that share a store must not each do it. Who does
    is agreed on as for blocks, by a claim of a block that no store has; if that job dies, another takes over.

    Raises:
        CorruptArtifactError: a block is damaged.
    """
    end = store.plan.num_blocks
    with Leases(store.directory) as leases:
        while not store.has_manifest:
            if not leases.claim(end):
                time.sleep(POLL_SECONDS)
                continue
            if not store.has_manifest:
                store.finish(inputs, versions)
            leases.release(end)
    return load_manifest(store.directory)
