"""Whether a process may be forked."""

import os
from pathlib import Path

#: jemalloc, which pyarrow brings, makes its background thread anew in a forked process.
_FORKABLE_THREADS = frozenset({"jemalloc_bg_thd"})


def can_fork() -> bool:
    """Whether this process has one thread, besides those of libraries that see to forks themselves."""
    try:
        names = [Path(f"/proc/self/task/{thread}/comm").read_text() for thread in os.listdir("/proc/self/task")]
    except OSError:
        return False  # not Linux
    return sum(name.strip() not in _FORKABLE_THREADS for name in names) == 1
