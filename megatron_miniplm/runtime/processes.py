"""What this process asks of the system and of libraries: forks, threads, memory."""

import ctypes
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


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_freed_memory() -> None:
    """Let glibc reuse freed arrays and tensors instead of giving their memory back.

    It maps each block of some MB anew, and the kernel zeroes every page of it: passes over scores take twice as long
    for that, the large matrix products of a CPU run 5 to 30 % longer. Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def set_encoder_threads(num_threads: int) -> None:
    """Size the thread pools behind tokenizers and gigatoken, which are made once a process: the first call decides.

    They take it from the environment only, so this process's is changed, and that of the children it starts.
    """
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if num_threads == 1 else "true"  # a pool of one is a thread more
