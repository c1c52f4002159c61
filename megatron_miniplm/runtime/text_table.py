"""Plain text for people: aligned tables, spans of time."""

from collections.abc import Container, Sequence


def aligned(rows: Sequence[Sequence[str]], *, left: Container[int] = (0,)) -> list[str]:
    """One line per row, with columns as wide as their widest cell and two spaces between them.

    A row of a single cell is a heading: it is printed as it is, and widens no column. Other rows may be shorter than
    the widest one. No line ends in spaces.

    Args:
        left: columns to align to the left; numbers are easier to read to the right.
    """
    num_columns = max(map(len, rows), default=0)
    table = [row for row in rows if len(row) > 1]
    widths = [max((len(row[column]) for row in table if column < len(row)), default=0) for column in range(num_columns)]

    def line(row: Sequence[str]) -> str:
        if len(row) == 1:
            return row[0]
        cells = zip(row, widths, strict=False)
        padded = (cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(cells))
        return "  ".join(padded).rstrip()

    return [line(row) for row in rows]


def duration(seconds: float) -> str:
    """In the two largest units that matter."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes:.0f} min"
    return f"{int(hours)} h {int(minutes) % 60} min" if hours < 48 else f"{int(hours) // 24} d {int(hours) % 24} h"
