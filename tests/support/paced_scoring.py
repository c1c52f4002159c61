"""`miniplm` on a slow file server: what jobs of tests run in its place.

    <run>/orders/seconds    how long the publication of a block takes; may change while jobs run
    <run>/orders/begun      written by ranks: the number of each block that they begin to work on, one a line

Scores are what they are without this. A script called `miniplm` that is first in `PATH` runs it with `<run>/orders` in
the variable MINIPLM_TEST_ORDERS.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import main

ORDERS = Path(os.environ["MINIPLM_TEST_ORDERS"])
POLL_SECONDS = 0.1


def seconds() -> float:
    try:
        return float((ORDERS / "seconds").read_text() or 0)
    except FileNotFoundError:
        return 0


def slow_down() -> None:
    write_block = ScoreStore.write_block

    def slow_write_block(self: ScoreStore, *arguments: Any) -> bool:
        started = time.monotonic()
        while time.monotonic() - started < seconds():
            time.sleep(POLL_SECONDS)
        return write_block(self, *arguments)

    ScoreStore.write_block = slow_write_block  # type: ignore[method-assign]


def write_down() -> None:
    take = BlockQueue.take

    def told_take(self: BlockQueue) -> int | None:
        block = take(self)
        if block is not None:
            with open(ORDERS / "begun", "a") as file:
                file.write(f"{block}\n")
        return block

    BlockQueue.take = told_take  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down()
    write_down()
    sys.exit(main())
