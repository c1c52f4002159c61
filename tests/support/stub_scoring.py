"""Stands for a rank of scoring in tests of the job scripts: when it is told to stop, it finishes its block.

It imports neither torch nor Megatron, so a start costs next to nothing.
"""

import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    rank = os.environ["RANK"]
    print(f"rank {rank} of {os.environ['WORLD_SIZE']} runs", flush=True)
    while not told:
        time.sleep(0.05)
    time.sleep(0.2)
    Path(f"{os.environ['MINIPLM_EXIT_CODES']}.75").touch()
    print(f"rank {rank} has stopped", flush=True)
    return 75


if __name__ == "__main__":
    sys.exit(main())
