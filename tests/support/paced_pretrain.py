"""Our student entry point, slow from some iteration on, so that what stops a job comes in the middle of its training.

    <orders>/seconds    how long an iteration takes, from iteration SLOW_ITERATION on; may change while jobs run

The directory of the orders is named by the variable MINIPLM_TEST_ORDERS. Numbers are what they are without this.
"""

# The order of these lines is what a user would have.
from megatron_miniplm.training.plugin import plug_in

plug_in()

import os  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

from megatron.training import get_args  # noqa: E402

from megatron_miniplm.training import student  # noqa: E402

ORDER = Path(os.environ["MINIPLM_TEST_ORDERS"]) / "seconds"
SLOW_ITERATION = int(os.environ["SLOW_ITERATION"])
POLL_SECONDS = 0.1


def ordered_seconds() -> float:
    return float(ORDER.read_text()) if ORDER.exists() else 0


def slow_down() -> None:
    forward_step = student.forward_step
    waited_for: set[int] = set()

    def slow_forward_step(data_iterator: Any, model: Any) -> Any:
        iteration = get_args().curr_iteration + 1
        if iteration >= SLOW_ITERATION and iteration not in waited_for:
            waited_for.add(iteration)
            started = time.monotonic()
            while time.monotonic() - started < ordered_seconds():
                time.sleep(POLL_SECONDS)
        return forward_step(data_iterator, model)

    student.forward_step = slow_forward_step


if __name__ == "__main__":
    slow_down()
    student.main()
