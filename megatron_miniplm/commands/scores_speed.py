"""How fast a store grows, from when its last blocks were published and what they hold: no state beside the blocks."""

import os
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.artifacts.leases import server_time_ns
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore

#: Blocks that tell the speed: the newest ones, of the last minutes before the newest.
_MAX_BLOCKS = 256
_WINDOW_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Of all processes together, over the last blocks."""

    tokens_per_second: float
    sequences_per_second: float


def recent_speed(store: ScoreStore, now_ns: int | None = None) -> Speed | None:
    """Speed since the publication of the oldest block that counts, without that block; None with less than two.

    Args:
        now_ns: by the clock that stamps the blocks' files; by default of their file server.

    Raises:
        CorruptArtifactError: one of these blocks is damaged.
    """
    if now_ns is None:
        now_ns = server_time_ns(store.directory)
    times = []
    for block in store.published_blocks():
        times.append((os.stat(store.block_path(block)).st_mtime_ns, block))
    newest = sorted(times)[-_MAX_BLOCKS:]
    newest = [(time_ns, block) for time_ns, block in newest if newest[-1][0] - time_ns <= _WINDOW_SECONDS * 1e9]
    if len(newest) < 2 or (span_seconds := (now_ns - newest[0][0]) / 1e9) <= 0:
        return None
    num_tokens = num_sequences = 0
    for _, block in newest[1:]:
        scores = store.read_block(block)
        num_tokens += int(scores["num_tokens"].sum(where=scores["num_tokens"] != NOT_SCORED, dtype=np.int64))
        num_sequences += len(scores)
    return Speed(tokens_per_second=num_tokens / span_seconds, sequences_per_second=num_sequences / span_seconds)
