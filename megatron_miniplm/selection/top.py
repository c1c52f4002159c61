"""The exact top set of a stream, by radix: counts of leading digits narrow it down, a few sorted sequences end it.

Sequences are ordered by their value, the greatest first, and then by their global id, the lowest first. A value is made
an integer of 64 bits that has the same order. One pass over the stream counts the upper digit of every integer, which
says with which digit the threshold begins; sequences with that digit are few, nearly always few enough to be sorted in
the next pass. That pass is spared where a sample has told the digit, and the first one has put such sequences aside.
Where they are too many, because many values are equal or nearly so, another pass counts the next digit of theirs, and
at last digits of the id. Memory does not grow with the stream, whatever is in it. Counts are integers: the result is
the same on any number of ranks, and with any sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.ranks import Ranks

#: So many sequences are sorted at once, some 100 bytes each.
MAX_SORTED = 1 << 21
_COUNTER_BITS = 20  # of all groups together, where there are not too many: 8 MB
_MIN_DIGIT_BITS = 10
_SAMPLE_MARGIN = 0.01  # of all ranks of sequences: how far off the sample may be
_VALUE_BITS, _ID_BITS = 64, 63

_SIGN = np.uint64(1 << 63)
_MAX_ID = np.iinfo(np.int64).max


class Ordered(NamedTuple):
    """Sequences of a stream that may be kept.

    Attributes:
        ids_N: global ids, int64.
        value_N: float64; infinities are ordinary values, NaN is refused.
        size_N: what a target counts: tokens, int64; None counts sequences.
        group_N: in which group each competes, from 0; None where there is one group.
    """

    ids_N: np.ndarray
    value_N: np.ndarray
    size_N: np.ndarray | None = None
    group_N: np.ndarray | None = None

    def take(self, places_K: np.ndarray) -> "Ordered":
        """The sequences at these places, or where a mask is true."""
        return Ordered(
            ids_N=self.ids_N[places_K],
            value_N=self.value_N[places_K],
            size_N=None if self.size_N is None else self.size_N[places_K],
            group_N=None if self.group_N is None else self.group_N[places_K],
        )


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The last sequence that is kept; a greater value, or the same and a lower id, is kept too.

    Attributes:
        key: of its value, see `sortable`; greater than any number's where nothing is kept.
        sequence: its global id.
    """

    key: int
    sequence: int

    @classmethod
    def of_nothing(cls) -> Self:
        return cls(key=(1 << _VALUE_BITS) - 1, sequence=-1)

    @classmethod
    def of_everything(cls) -> Self:
        return cls(key=0, sequence=_MAX_ID)

    @classmethod
    def of_value(cls, value: float) -> Self:
        """Keeps every sequence of at least this value."""
        return cls(key=int(sortable(np.array([value]))[0]), sequence=_MAX_ID)

    @property
    def value(self) -> float:
        """The lowest value that is kept; NaN where nothing is."""
        bits = np.array([self.key], np.uint64)
        bits = np.where(bits & _SIGN, bits ^ _SIGN, ~bits)
        return float(bits.view(np.float64)[0])


def keeps(thresholds: list[Threshold], ordered: Ordered) -> np.ndarray:
    """Whether each sequence is kept by the threshold of its group, bool."""
    key_G = np.array([threshold.key for threshold in thresholds], np.uint64)
    sequence_G = np.array([threshold.sequence for threshold in thresholds], np.int64)
    group_N = 0 if ordered.group_N is None else ordered.group_N
    key_N, key_of_last_N = sortable(ordered.value_N), key_G[group_N]
    return (key_N > key_of_last_N) | ((key_N == key_of_last_N) & (ordered.ids_N <= sequence_G[group_N]))


def sortable(value_N: np.ndarray) -> np.ndarray:
    """Integers, uint64, that have the order of these float64; -0 and 0 are equal."""
    bits_N = (value_N + 0.0).view(np.int64)
    return (bits_N ^ ((bits_N >> 63) & np.int64(_MAX_ID))).view(np.uint64) ^ _SIGN


#: Yields the stream anew; on every rank a part of it.
Stream = Callable[[], Iterator[Ordered]]
#: From the number of sequences and the size of each group, (G,) int64, to the size to be kept, (G,) int64.
Targets = Callable[[np.ndarray, np.ndarray], np.ndarray]


def find_thresholds(
    stream: Stream,
    targets: Targets,
    *,
    num_groups: int,
    ranks: Ranks,
    sample: Stream | None = None,
    sampled_fraction: float = 1.0,
) -> list[Threshold]:
    """Find the last sequence of every group's top set; a collective call.

    Args:
        stream: of this rank.
        targets: the top set is the smallest that holds so much; all of a group that has less.
        num_groups: sequences compete with those of their own group only.
        sample: a part of the stream, to be read beforehand.
        sampled_fraction: its share of all ranks' streams, about.

    Returns:
        One a group.

    Raises:
        InputError: a value is NaN.
    """
    search = _Search(num_groups, ranks)
    if sample is not None:
        search.guess(sample, sampled_fraction, targets)
    num_left = search.narrow(stream, targets)
    while num_left > MAX_SORTED:
        num_left = search.narrow(stream)
    return search.sort(stream)


class _Search:
    """Where the thresholds can still lie: for each group the leading digits of the last sequence that is kept."""

    def __init__(self, num_groups: int, ranks: Ranks) -> None:
        self._ranks = ranks
        self._num_groups = num_groups
        self._digit_bits = max(_MIN_DIGIT_BITS, _COUNTER_BITS - (num_groups - 1).bit_length())
        self._num_bits = 0  # known of value and id, in this order
        self._value_G = np.zeros(num_groups, np.uint64)  # the known bits
        self._id_G = np.zeros(num_groups, np.uint64)
        self._wanted_G = np.ones(num_groups, np.int64)  # size that is still to be kept, of what has these bits
        self._keeps_all_G = np.zeros(num_groups, bool)
        self._guess_2G: np.ndarray | None = None  # lowest and highest first digit that is put aside
        self._aside: list[Ordered] | None = None
        self._num_aside = 0

    def guess(self, sample: Stream, fraction: float, targets: Targets) -> None:
        """Let the first pass put aside what has the digits with which the thresholds probably begin."""
        shift = np.uint64(_VALUE_BITS - self._digit_bits)
        count_GD, size_GD = self._count(sample, shift, self._digit_bits, is_value=True)
        count_G, size_G = count_GD.sum(axis=1), size_GD.sum(axis=1)
        scaled = [(total_G / fraction).astype(np.int64) for total_G in (count_G, size_G)]
        wanted_G = targets(*scaled) * fraction
        margin_G = size_G * min(_SAMPLE_MARGIN, MAX_SORTED / 4 / max(1, int(scaled[0].sum())))
        size_from_top_GD = np.cumsum(size_GD[:, ::-1], axis=1)
        bounds = []
        for bound_G in (wanted_G + margin_G, wanted_G - margin_G):
            clipped_G = np.clip(bound_G, 1, np.maximum(size_G, 1))
            bounds.append((1 << self._digit_bits) - 1 - np.argmax(size_from_top_GD >= clipped_G[:, None], axis=1))
        self._guess_2G, self._aside = np.array(bounds), []

    def narrow(self, stream: Stream, targets: Targets | None = None) -> int:
        """Find the next digit of each threshold; returns how many sequences have the digits that are then known.

        Args:
            targets: in the first call.
        """
        is_value = self._num_bits < _VALUE_BITS
        end = _VALUE_BITS if is_value else _VALUE_BITS + _ID_BITS
        digit_bits = min(self._digit_bits, end - self._num_bits)
        count_GD, size_GD = self._count(stream, np.uint64(end - self._num_bits - digit_bits), digit_bits, is_value)
        if targets is not None:
            size_G = size_GD.sum(axis=1)
            self._wanted_G = targets(count_GD.sum(axis=1), size_G)
            self._keeps_all_G = self._wanted_G > size_G
            self._wanted_G[self._keeps_all_G] = 0
        size_from_top_GD = np.cumsum(size_GD[:, ::-1], axis=1)
        from_top_G = np.argmax(size_from_top_GD >= self._wanted_G[:, None], axis=1)
        groups_G = np.arange(self._num_groups)
        digit_G = (1 << digit_bits) - 1 - from_top_G
        self._wanted_G -= size_from_top_GD[groups_G, from_top_G] - size_GD[groups_G, digit_G]
        self._wanted_G = np.maximum(self._wanted_G, 0)
        known_G = self._value_G if is_value else self._id_G
        known_G <<= np.uint64(digit_bits)
        known_G |= digit_G.astype(np.uint64)
        self._num_bits += digit_bits
        if targets is not None:
            self._check_guess(digit_G)
        return int(count_GD[groups_G, digit_G].sum(where=self._wanted_G > 0))

    def sort(self, stream: Stream) -> list[Threshold]:
        """Order what has the known digits."""
        parts = [self._left(ordered) for ordered in (stream() if self._aside is None else self._aside)]
        columns = [(left.ids_N, key_N, _size(left), _group(left)) for left, key_N in parts]
        empty = [np.zeros(0, dtype) for dtype in (np.int64, np.uint64, np.int64, np.int64)]
        mine = [np.concatenate([start, *column]) for start, *column in zip(empty, *columns, strict=True)]
        ids_L, key_L, size_L, group_L = (
            np.concatenate(column) for column in zip(*self._ranks.gather(mine), strict=True)
        )
        order_L = np.lexsort((ids_L, ~key_L, group_L))
        ids_L, key_L, size_L, group_L = (column[order_L] for column in (ids_L, key_L, size_L, group_L))
        start_G = np.searchsorted(group_L, np.arange(self._num_groups + 1))
        thresholds = []
        for group, wanted in enumerate(self._wanted_G.tolist()):
            part = slice(start_G[group], start_G[group + 1])
            if wanted <= 0:
                found = Threshold.of_everything() if self._keeps_all_G[group] else Threshold.of_nothing()
                thresholds.append(found)
                continue
            last = part.start + int(np.argmax(np.cumsum(size_L[part]) >= wanted))
            thresholds.append(Threshold(key=int(key_L[last]), sequence=int(ids_L[last])))
        return thresholds

    def _count(
        self, stream: Stream, shift: np.uint64, digit_bits: int, is_value: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Number and size of the sequences that have the known digits, by group and next digit, (G, D) int64."""
        shape = (self._num_groups, 1 << digit_bits)
        count_GD, size_GD = np.zeros(shape, np.int64), None
        mask = np.uint64((1 << digit_bits) - 1)
        for ordered in stream():
            left, key_N = self._left(ordered)
            place_N = (((key_N if is_value else _id_key(left.ids_N)) >> shift) & mask).view(np.int64)
            if self._aside is not None and self._num_bits == 0:
                self._put_aside(left, place_N)
            if left.group_N is not None:
                place_N += left.group_N.astype(np.int64) << digit_bits
            np.add.at(count_GD.reshape(-1), place_N, 1)
            if left.size_N is not None:
                size_GD = np.zeros(shape, np.int64) if size_GD is None else size_GD
                np.add.at(size_GD.reshape(-1), place_N, left.size_N)
        count_GD = self._ranks.sum(count_GD)
        if not any(self._ranks.gather(size_GD is not None)):
            return count_GD, count_GD
        return count_GD, self._ranks.sum(np.zeros(shape, np.int64) if size_GD is None else size_GD)

    def _put_aside(self, ordered: Ordered, digit_N: np.ndarray) -> None:
        assert self._guess_2G is not None
        assert self._aside is not None
        low_N, high_N = self._guess_2G[:, 0 if ordered.group_N is None else ordered.group_N]
        self._aside.append(ordered.take(np.flatnonzero((digit_N >= low_N) & (digit_N <= high_N))))
        self._num_aside += len(self._aside[-1].ids_N)
        if self._num_aside > MAX_SORTED:
            self._aside = None

    def _check_guess(self, digit_G: np.ndarray) -> None:
        """Forget what was put aside, unless it has all that has the first digits of the thresholds, on all ranks."""
        is_right = False
        if self._aside is not None and self._guess_2G is not None:
            low_G, high_G = self._guess_2G
            is_right = bool((((digit_G >= low_G) & (digit_G <= high_G)) | (self._wanted_G <= 0)).all())
        if not all(self._ranks.gather(is_right)):
            self._aside = None

    def _left(self, ordered: Ordered) -> tuple[Ordered, np.ndarray]:
        """The sequences that have the known digits, and the keys of their values."""
        key_N = sortable(ordered.value_N)
        if self._num_bits == 0:
            _refuse_nan(ordered)
            return ordered, key_N
        group_N = 0 if ordered.group_N is None else ordered.group_N
        value_bits = min(self._num_bits, _VALUE_BITS)
        is_left_N = key_N >> np.uint64(_VALUE_BITS - value_bits) == self._value_G[group_N]
        is_left_N &= (self._wanted_G > 0)[group_N]
        if id_bits := self._num_bits - value_bits:
            is_left_N &= _id_key(ordered.ids_N) >> np.uint64(_ID_BITS - id_bits) == self._id_G[group_N]
        places_L = np.flatnonzero(is_left_N)
        return ordered.take(places_L), key_N[places_L]


def _id_key(ids_N: np.ndarray) -> np.ndarray:
    """Integers of 63 bits, uint64, of which the greatest is that of the lowest id."""
    return (_MAX_ID - ids_N).view(np.uint64)


def _size(ordered: Ordered) -> np.ndarray:
    return np.ones(len(ordered.ids_N), np.int64) if ordered.size_N is None else ordered.size_N


def _group(ordered: Ordered) -> np.ndarray:
    return np.zeros(len(ordered.ids_N), np.int64) if ordered.group_N is None else ordered.group_N.astype(np.int64)


def _refuse_nan(ordered: Ordered) -> None:
    if np.isnan(ordered.value_N).any():
        first = int(np.argmax(np.isnan(ordered.value_N)))
        raise InputError(f"sequence {ordered.ids_N[first]} has no number to be ranked by (NaN)")
