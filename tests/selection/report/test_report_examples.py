import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.selection.report.examples import BestExamples, Example, best_places


def example(sequence: int) -> Example:
    return Example(sequence=sequence, value=0.0, teacher=None, reference=None, num_tokens=1, is_kept=True)


@given(
    keys=st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), max_size=60),
    num_wanted=st.integers(0, 8),
    piece_size=st.integers(1, 20),
    lag=st.integers(0, 3),
)
def test_pieces_give_what_a_sort_gives(keys: list[float], num_wanted: int, piece_size: int, lag: int) -> None:
    """Also with bounds that are some pieces old, as threads see them."""
    best = BestExamples(num_wanted)
    bounds = [best.bound]
    for start in range(0, len(keys), piece_size):
        key_N = np.array(keys[start : start + piece_size])
        bound = bounds[max(0, len(bounds) - 1 - lag)]
        places = best_places(key_N, num_wanted, bound).tolist()
        assert all(key_N[place] > bound for place in places)
        best.add([(float(key_N[place]), -(start + place), example(start + place)) for place in places])
        bounds.append(best.bound)
    finite = [sequence for sequence, key in enumerate(keys) if key > -np.inf]
    expected = sorted(finite, key=lambda sequence: (-keys[sequence], sequence))[:num_wanted]
    assert [one.sequence for one in best.in_order()] == expected
