"""Stands for a training in tests of the job scripts: it iterates, saves, and obeys SIGTERM as Megatron does.

It imports neither torch nor Megatron, so a start costs next to nothing. It has a child in a session of its own, which
ignores SIGTERM, as Megatron's process for saving does. Variables of the environment:

    STUB_SECONDS    how long an iteration takes
    STUB_TRACES     a directory for `<attempt>.main` and `<attempt>.child`, to which they write the time while they run
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

#: A child that outlives its parent ends after a minute.
CHILD = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(600):
    with open(sys.argv[1], "a") as file:
        print(time.time(), file=file)
    time.sleep(0.1)
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save", type=Path, required=True)
    parser.add_argument("--train-iters", type=int, required=True)
    arguments, _ = parser.parse_known_args()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    traces = Path(os.environ["STUB_TRACES"])
    traces.mkdir(exist_ok=True)
    attempt = os.environ["MINIPLM_ATTEMPT"]
    command = [sys.executable, "-c", CHILD, str(traces / f"{attempt}.child")]
    child = subprocess.Popen(command, start_new_session=True)
    arguments.save.mkdir(parents=True, exist_ok=True)
    latest = arguments.save / "latest_checkpointed_iteration.txt"
    iteration = int(latest.read_text()) if latest.exists() else 0
    while iteration < arguments.train_iters and not told:
        iteration += 1
        time.sleep(float(os.environ["STUB_SECONDS"]))
        latest.with_suffix(".tmp").write_text(str(iteration))
        latest.with_suffix(".tmp").rename(latest)
        with open(traces / f"{attempt}.main", "a") as file:
            print(time.time(), file=file)
    child.kill()
    child.wait()


if __name__ == "__main__":
    main()
