from megatron_miniplm.runtime.text_table import aligned


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert aligned([["", "a", "loss"], ["first", "1", "2.5"], ["b", "1,000", "10.25"]]) == [
        "           a   loss",
        "first      1    2.5",
        "b      1,000  10.25",
    ]


def test_columns_to_the_left_and_to_the_right() -> None:
    rows = [["name", "n", "state"], ["x", "10", "done"], ["longer", "7", ""]]
    assert aligned(rows, left={0, 2}) == ["name     n  state", "x       10  done", "longer   7"]


def test_headings_widen_nothing() -> None:
    rows = [["a", "1"], [""], ["a heading that is long"], ["b", "22"]]
    assert aligned(rows) == ["a   1", "", "a heading that is long", "b  22"]


def test_short_rows_and_no_rows() -> None:
    assert aligned([["a", "bb", "ccc"], ["dd", "e"]]) == ["a   bb  ccc", "dd   e"]
    assert aligned([]) == []
