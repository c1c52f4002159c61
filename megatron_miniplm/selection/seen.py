"""What the reference model was trained on, as far as its scores or the user know."""

import logging
from collections.abc import Sequence
from pathlib import Path

from megatron_miniplm.artifacts.fingerprint import Fingerprint
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import TRAINING_DATA, is_prefix
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.scored_corpus import REFERENCE, ScoredCorpus

logger = logging.getLogger(__name__)


def training_prefixes(corpus: ScoredCorpus, given: Sequence[Path]) -> dict[Path, Fingerprint]:
    """Prefixes that the reference was trained on, with their fingerprints.

    Args:
        given: by the user, beside those that the manifest of the reference's scores names.
    """
    found = list(given)
    if REFERENCE in corpus.stores:
        for parent in corpus.manifests[REFERENCE].inputs:
            if parent.role != TRAINING_DATA:
                continue
            path = parent_path(corpus.stores[REFERENCE].directory, parent)
            if is_prefix(path):
                found.append(path)
            else:
                logger.warning("%s, which the reference model was trained on, is not here and not compared", path)
    return {path: IndexedCorpus.open(path).fingerprint() for path in dict.fromkeys(found)}
