"""Progress towards a known total: a bar on a terminal, a line every few seconds elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

from megatron_miniplm.runtime.terminal import printable

logger = logging.getLogger(__name__)

LINE_INTERVAL_SECONDS = 10.0
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


class Progress:
    """Counts something towards a total; use as a context manager.

    Args:
        total: how many `unit`s there are.
        unit: what is counted, such as `B` or ` tokens`.
        visible: False on ranks that have nothing to say.
        title: of the step, where a program has several.
    """

    def __init__(self, total: int, unit: str, *, visible: bool = True, title: str = "") -> None:
        from tqdm import tqdm

        self.total = total
        self.unit = unit
        self.done = 0
        title = printable(title, one_line=True)
        self._title = f"{title}: " if title else ""
        self._visible = visible
        self._on_terminal = sys.stderr.isatty()
        self._started = self._last_line = time.monotonic()
        hidden = not (visible and self._on_terminal)
        self._bar = tqdm(total=total, unit=unit, unit_scale=True, desc=title or None, disable=hidden)

    def advance(self, count: int, *, note: str = "") -> None:
        """Count on, and show it now and then, with a note behind."""
        self.done = min(self.total, self.done + count)
        if note:
            self._bar.set_postfix_str(printable(note, one_line=True), refresh=False)
        self._bar.update(count)
        now = time.monotonic()
        if self._visible and not self._on_terminal and now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            self._write_line(now - self._started, note)

    def _write_line(self, elapsed_seconds: float, note: str) -> None:
        rate = self.done / elapsed_seconds
        share = self.done / self.total if self.total else 1.0
        parts = [f"{100 * share:.1f}% of {scaled(self.total, self.unit)}"]
        if rate:
            left_seconds = (self.total - self.done) / rate
            parts += [f"{scaled(rate, self.unit)}/s", f"{left_seconds:.0f} s left"]
        logger.info("%s%s", self._title, ", ".join([*parts, note] if note else parts))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def scaled(value: float, unit: str) -> str:
    """`12345678, "B"` as `12.3 MB`; `1500, " tokens"` as `1.5k tokens`."""
    for size, prefix in _PREFIXES:
        if value >= size:
            return f"{value / size:.1f}{prefix}{unit}" if unit.startswith(" ") else f"{value / size:.1f} {prefix}{unit}"
    return f"{value:.0f}{unit}" if unit.startswith(" ") else f"{value:.0f} {unit}"
