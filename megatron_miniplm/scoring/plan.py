"""Which sequences form a block, and which data-parallel rank computes it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Sequences 0..num_sequences-1 of all prefixes in order, cut into blocks of equal size (the last may be shorter)."""

    num_sequences: int
    block_sequences: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_sequences // self.block_sequences)

    def sequences(self, block: int) -> range:
        """Global ids of a block's sequences."""
        start = block * self.block_sequences
        return range(start, min(start + self.block_sequences, self.num_sequences))


def blocks_of_replica(missing: Sequence[int], replica: int, num_replicas: int) -> Sequence[int]:
    """Deal the missing blocks to the data-parallel replicas in turn."""
    return missing[replica::num_replicas]
