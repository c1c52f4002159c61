"""The kept sequences of selections, read in step with the pieces of their corpus."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_miniplm.artifacts.selections import SelectedPrefix, Selection
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.selection.scored_corpus import Piece


@dataclass(frozen=True, kw_only=True)
class KeptPiece:
    """A piece of the corpus, and which of its sequences each of some selections keeps.

    Attributes:
        piece: which.
        places_of: one array a selection: places in the piece, int64, ascending.
    """

    piece: Piece
    places_of: tuple[np.ndarray, ...]

    def mask(self, selection: int) -> np.ndarray:
        """Whether each sequence is kept, bool."""
        kept_N = np.zeros(self.piece.size, bool)
        kept_N[self.places_of[selection]] = True
        return kept_N


def kept_pieces(selections: Sequence[Selection], pieces: Sequence[Piece]) -> Iterator[KeptPiece]:
    """Go through all pieces of a corpus in order; each index file is read once, not mapped.

    Raises:
        CorruptArtifactError: an index file does not hold ascending sequences of its prefix.
    """
    cursors: list[KeptCursor] = []
    prefix = -1
    for piece in pieces:
        if piece.prefix != prefix:
            prefix = piece.prefix
            cursors = [KeptCursor(selection.prefixes[prefix]) for selection in selections]
        found = [cursor.take(piece.first + piece.size) - piece.first for cursor in cursors]
        yield KeptPiece(piece=piece, places_of=tuple(found))


class KeptCursor:
    """Reads the kept sequences of one prefix, from the first to the last."""

    def __init__(self, prefix: SelectedPrefix) -> None:
        self._prefix = prefix
        self._num_taken = 0
        self._last = -1

    def take(self, stop: int) -> np.ndarray:
        """The next kept sequences below `stop`, int64."""
        num_left = self._prefix.num_sequences - self._num_taken
        count = min(num_left, stop - self._last - 1)  # they ascend
        index_K = np.zeros(0, np.int64)
        if count > 0:
            index_K = self._prefix.checked_indices.read(self._num_taken, self._num_taken + count)
        is_ascending = not len(index_K) or (index_K[0] > self._last and bool((np.diff(index_K) > 0).all()))
        taken_K = index_K[: np.searchsorted(index_K, stop)]
        is_last = stop == self._prefix.num_source_sequences
        if not is_ascending or (is_last and len(taken_K) < num_left):
            raise CorruptArtifactError(
                f"{self._prefix.indices_path} does not hold ascending numbers below "
                f"{self._prefix.num_source_sequences}: make the selection again"
            )
        self._num_taken += len(taken_K)
        self._last = stop - 1
        return taken_K
