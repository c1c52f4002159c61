"""Which checkpoints of a run are evaluated."""

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_miniplm.errors import InputError

LATEST, ALL = "latest", "all"
_ITERATION = re.compile(r"iter_(\d{7,})")


def choose_iterations(load: Path, latest: Path, wanted: Sequence[str], every_nth: int = 1) -> list[int | None]:
    """Iterations in ascending order; None stands for a checkpoint without a number (`release`).

    Args:
        load: directory of the run.
        latest: directory of the checkpoint that its tracker names. Later ones are left out: they may be half written.
        wanted: LATEST, ALL, or numbers.
        every_nth: of those, keep every n-th, counted back from the last.

    Raises:
        InputError: an iteration that is not there, or a word that is none.
    """
    number = _ITERATION.fullmatch(latest.name)
    if number is None:
        if list(wanted) not in ([LATEST], [ALL]):
            raise InputError(f"{latest} is the only checkpoint that {load} names, and has no number: give latest")
        return [None]
    found = (_ITERATION.fullmatch(path.name) for path in load.iterdir() if path.is_dir())
    saved = sorted(int(match[1]) for match in found if match and 0 < int(match[1]) <= int(number[1]))
    chosen: list[int | None]
    if list(wanted) == [LATEST]:
        chosen = [int(number[1])]
    elif list(wanted) == [ALL]:
        chosen = [*saved]
    else:
        chosen = [*sorted({_iteration(word) for word in wanted})]
        if missing := [iteration for iteration in chosen if iteration not in saved]:
            raise InputError(f"{load} has no iteration {missing[0]}: it has {', '.join(map(str, saved))}")
    return chosen[::-1][::every_nth][::-1]


def _iteration(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--checkpoint-iterations {word}: expected {LATEST}, {ALL}, or iterations")
    return int(word)
