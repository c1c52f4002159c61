import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from selections import on_ranks

from megatron_miniplm.errors import InputError
from megatron_miniplm.selection import top
from megatron_miniplm.selection.ranks import OneProcess, Ranks
from megatron_miniplm.selection.top import Ordered, Threshold, find_thresholds, keeps, sortable

#: Few distinct values, so that ties are common.
VALUES = st.one_of(
    st.sampled_from([-math.inf, -1.0, -0.0, 0.0, 0.5, 0.5 + 2**-40, math.inf]), st.floats(allow_nan=False)
)
ROWS = st.lists(st.tuples(VALUES, st.integers(0, 20), st.integers(0, 2)), max_size=40)


def by_full_sort(rows: list[tuple[float, int, int]], group: int, target: int) -> list[int]:
    """Ids of a group's smallest top set that holds the target."""
    members = [index for index, row in enumerate(rows) if row[2] == group]
    kept, held = [], 0
    for index in sorted(members, key=lambda index: (-rows[index][0], index)):
        if held >= target:
            break
        kept.append(index)
        held += rows[index][1]
    return kept


def search(
    rows: list[tuple[float, int, int]],
    targets: list[int],
    *,
    num_ranks: int = 1,
    piece: int = 7,
    counts_sizes: bool = True,
    sampled: range | None = None,
) -> list[int]:
    """Ids that the thresholds keep, in pieces of another cut on every number of ranks."""
    value_N, size_N, group_N = (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 3

    def pieces(start: int, stop: int) -> Iterator[Ordered]:
        for first in range(start, stop, piece):
            part = slice(first, min(first + piece, stop))
            yield Ordered(
                ids_N=np.arange(part.start, part.stop),
                value_N=value_N[part].astype(np.float64),
                size_N=size_N[part].astype(np.int64) if counts_sizes else None,
                group_N=group_N[part].astype(np.int64) if len(targets) > 1 else None,
            )

    def body(ranks: Ranks) -> list[int]:
        bounds = [len(rows) * rank // ranks.size for rank in range(ranks.size + 1)]
        thresholds = find_thresholds(
            lambda: pieces(bounds[ranks.rank], bounds[ranks.rank + 1]),
            lambda count_G, size_G: np.array(targets),
            num_groups=len(targets),
            ranks=ranks,
            sample=None if sampled is None else lambda: pieces(sampled.start, sampled.stop),
            sampled_fraction=1.0 if sampled is None else ranks.size * len(sampled) / max(1, len(rows)),
        )
        return [int(index) for part in pieces(0, len(rows)) for index in part.ids_N[keeps(thresholds, part)]]

    first, *others = on_ranks(body, num_ranks)
    assert all(other == first for other in others)
    return first


@pytest.fixture(scope="module", autouse=True)
def _small_digits() -> Iterator[None]:
    """Of 12 bits: more of them, and tables that cost nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(top, "_COUNTER_BITS", 12)
        yield


@pytest.fixture(params=[1 << 21, 3, 0], ids=["sorted at once", "refined to 3", "refined to the end"])
def max_sorted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(top, "MAX_SORTED", max(1, request.param))
    return int(request.param)


def check(rows: list[tuple[float, int, int]], targets: list[int], num_ranks: int, piece: int) -> None:
    expected = sorted(index for group, target in enumerate(targets) for index in by_full_sort(rows, group, target))
    assert search(rows, targets, num_ranks=num_ranks, piece=piece) == expected


@given(rows=ROWS, targets=st.lists(st.integers(0, 200), min_size=3, max_size=3), piece=st.integers(1, 50))
@example(rows=[], targets=[1, 1, 1], piece=1)
@example(rows=[(0.0, 1, 0)], targets=[1, 5, 0], piece=1)
@example(rows=[(2.0, 1, 1)] * 9, targets=[3, 4, 3], piece=2)
@example(rows=[(-math.inf, 1, 0), (math.inf, 1, 0), (-math.inf, 1, 0)], targets=[2, 0, 0], piece=5)
@example(rows=[(0.0, 1, 0), (-0.0, 1, 0), (0.0, 1, 0)], targets=[2, 0, 0], piece=1)
@example(rows=[(1.0, 0, 0), (1.0, 0, 0), (0.5, 3, 0), (0.5, 0, 0)], targets=[3, 0, 0], piece=1)
def test_thresholds_equal_a_full_sort_on_any_ranks(
    rows: list[tuple[float, int, int]], targets: list[int], piece: int
) -> None:
    for num_ranks in (1, 2, 3):
        check(rows, targets, num_ranks, piece)


@given(rows=ROWS, targets=st.lists(st.integers(0, 200), min_size=3, max_size=3), data=st.data())
def test_a_sample_changes_nothing(rows: list[tuple[float, int, int]], targets: list[int], data: st.DataObject) -> None:
    """Nor does one that misleads."""
    start = data.draw(st.integers(0, len(rows)))
    sampled = range(start, data.draw(st.integers(start, len(rows))))
    for num_ranks in (1, 2):
        found = search(rows, targets, num_ranks=num_ranks, sampled=sampled if sampled else None)
        assert found == search(rows, targets)


@pytest.mark.parametrize("step", [1, 50])
def test_a_good_sample_spares_a_pass(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    value_N = np.random.default_rng(1).normal(size=50_000)
    passes = []

    def stream(part: slice) -> Iterator[Ordered]:
        passes.append(part)
        ids_N = np.arange(50_000)[part]
        yield Ordered(ids_N=ids_N, value_N=value_N[part])

    thresholds = find_thresholds(
        lambda: stream(slice(None)),
        lambda count_G, size_G: count_G // 2,
        num_groups=1,
        ranks=OneProcess(),
        sample=lambda: stream(slice(0, None, step)),
        sampled_fraction=1 / step,
    )
    assert passes == [slice(0, None, step), slice(None)]
    kept_N = keeps(thresholds, Ordered(ids_N=np.arange(50_000), value_N=value_N))
    assert kept_N.sum() == 25_000
    assert value_N[kept_N].min() > value_N[~kept_N].max()


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("kind", ["equal", "two values", "near", "random", "wide"])
def test_refinement_ends_in_the_same_set(max_sorted: int, kind: str, num_ranks: int) -> None:
    rng = np.random.default_rng(5)
    values = {
        "equal": np.full(300, 0.25),
        "two values": rng.choice([0.25, np.nextafter(0.25, 1)], 300),
        "near": 0.25 + np.arange(300) * 2.0**-54,
        "random": rng.normal(size=300),
        "wide": rng.normal(size=300) * 10.0 ** rng.integers(-300, 300, 300),
    }[kind]
    rows = [(float(value), int(size), 0) for value, size in zip(values, rng.integers(0, 9, 300), strict=True)]
    for target in (1, 17, 600, 10_000):
        check(rows, [target], num_ranks, 64)


@pytest.mark.parametrize("target", [1, 2, 5, 6])
def test_sequences_are_counted_where_nothing_else_is(target: int) -> None:
    rows = [(value, 0, 0) for value in (0.5, 2.0, 0.5, 0.5, -1.0)]
    expected = sorted(sorted(range(5), key=lambda index: (-rows[index][0], index))[:target])
    assert search(rows, [target], counts_sizes=False) == expected


def test_sizes_beyond_32_bits() -> None:
    rows = [(float(value), 2**40, 0) for value in range(4)]
    assert search(rows, [3 * 2**40]) == [1, 2, 3]


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_nan_is_refused_with_its_sequence(num_ranks: int) -> None:
    rows = [(0.0, 1, 0)] * 9 + [(math.nan, 1, 0)]
    with pytest.raises(Exception) as raised:  # noqa: PT011 - of the ranks that wait, the barrier's
        search(rows, [3], num_ranks=num_ranks)
    if num_ranks == 1:
        assert isinstance(raised.value, InputError)
        assert str(raised.value).startswith("sequence 9 has no number to be ranked by (NaN)")


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=20))
def test_keys_have_the_order_of_the_values(values: list[float]) -> None:
    value_N = np.array(values)
    key_N = sortable(value_N)
    for one in range(len(values)):
        assert ((key_N < key_N[one]) == (value_N < value_N[one])).all()
        assert ((key_N == key_N[one]) == (value_N == value_N[one])).all()
        assert Threshold(key=int(key_N[one]), sequence=0).value == value_N[one]


def test_a_threshold_of_a_value_keeps_what_has_it() -> None:
    value_N = np.array([1.0, 0.5, np.nextafter(0.5, 0), -np.inf, np.inf])
    ordered = Ordered(ids_N=np.arange(5), value_N=value_N)
    assert keeps([Threshold.of_value(0.5)], ordered).tolist() == [True, True, False, False, True]
    assert not keeps([Threshold.of_nothing()], ordered).any()
    assert OneProcess().gather(1) == [1]
