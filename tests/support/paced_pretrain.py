"""Our student entry point, slow from some iteration on, so that what stops a job comes in the middle of its training.

Only a start without a checkpoint is slowed down: one that resumes has shown what it is to show once it is at the end.
Numbers are what they are without this.
"""

# The order of these lines is what a user would have.
from megatron_miniplm.training.plugin import plug_in

plug_in()

import os  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from megatron.training import get_args  # noqa: E402

from megatron_miniplm.training import student  # noqa: E402

#: The first slow iteration, and how long it and each after it waits.
SLOW_ITERATION = int(os.environ.get("SLOW_ITERATION", "12"))
SLOW_SECONDS = float(os.environ.get("SLOW_SECONDS", "0"))


def slow_down() -> None:
    forward_step = student.forward_step
    waited_for: set[int] = set()

    def slow_forward_step(data_iterator: Any, model: Any) -> Any:
        args = get_args()
        iteration = args.curr_iteration + 1
        if args.iteration == 0 and iteration >= SLOW_ITERATION and iteration not in waited_for:
            waited_for.add(iteration)
            resume_at = time.monotonic() + SLOW_SECONDS
            while (left := resume_at - time.monotonic()) > 0:
                time.sleep(left)
        return forward_step(data_iterator, model)

    student.forward_step = slow_forward_step


if __name__ == "__main__":
    slow_down()
    student.main()
