"""Progress in bytes: a bar on a terminal, a line every ten seconds elsewhere."""

import logging
import sys
import time
from types import TracebackType
from typing import Self

logger = logging.getLogger(__name__)

LINE_INTERVAL_SECONDS = 10.0


class ByteProgress:
    """Counts bytes towards a known total; use as a context manager."""

    def __init__(self, total_bytes: int) -> None:
        from tqdm import tqdm

        self.total_bytes = total_bytes
        self.done_bytes = 0
        self._started = self._last_line = time.monotonic()
        self._on_terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total_bytes, unit="B", unit_scale=True, disable=not self._on_terminal)

    def advance(self, num_bytes: int) -> None:
        self.done_bytes += num_bytes
        self._bar.update(num_bytes)
        now = time.monotonic()
        if not self._on_terminal and now - self._last_line >= LINE_INTERVAL_SECONDS:
            self._last_line = now
            rate = self.done_bytes / (now - self._started) / 1e6
            percent = 100 * self.done_bytes / self.total_bytes
            logger.info("%.1f%% of %.1f MB read, %.1f MB/s", percent, self.total_bytes / 1e6, rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
