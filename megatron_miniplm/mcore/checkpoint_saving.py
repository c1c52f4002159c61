"""Saving Megatron checkpoints: one writer per directory, and an error in one line when the disk is full."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed
from torch.distributed.checkpoint.api import CheckpointException

from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.mcore import program
from megatron_miniplm.mcore.huggingface.tensor_files import unwritable


@contextmanager
def sole_saver(directory: Path, *, start: Callable[[], object], discard: Callable[[], object]) -> Iterator[None]:
    """Hold `directory` while checkpoints are saved into it; a collective call of all ranks.

    Args:
        start: called on rank 0 once the directory is held.
        discard: removes an unfinished checkpoint; called on rank 0 at the end, before the directory is released.

    Raises:
        InputError: another process writes there, or a checkpoint cannot be written.
    """
    with ExitStack() as held_by_rank_zero:

        def begin() -> None:
            held_by_rank_zero.enter_context(sole_writer(directory))
            start()
            held_by_rank_zero.callback(discard)

        program.on_rank_zero(begin)
        try:
            yield
        except (CheckpointException, OSError) as error:
            failure = unwritable(directory, _root_cause(error))
            failure.reported_elsewhere = torch.distributed.get_rank() != 0
            raise failure from error


def _root_cause(error: BaseException) -> str:
    """The last line of an error, without the tracebacks of the ranks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
