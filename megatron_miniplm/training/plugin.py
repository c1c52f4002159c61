"""Refined training inside any Megatron program: every patch in one table, with the line of Megatron that needs it.

    from megatron_miniplm.training.plugin import plug_in
    plug_in()       # the first two lines of a script of your own that calls `megatron.training.pretrain`

`megatron_miniplm.pretrain_gpt` and `megatron_miniplm.launch` do the same for programs that they start. Without one of
our flags training is the same: a SIGTERM to all processes no longer spoils the save that it asks for, views are
compared with their manifests, and small files record what a run was trained and validated on. Patches replace
attributes of modules and classes that Megatron looks up when it runs, so it does not matter what was imported before.
Line numbers are those of megatron-core 0.19.2.
"""

import argparse
import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from multiprocessing import resource_tracker
from types import ModuleType
from typing import Any, NoReturn

from megatron_miniplm.errors import STOP_SIGNALS
from megatron_miniplm.mcore.versions import Patch
from megatron_miniplm.runtime.command_line import UsageError, report, shorten
from megatron_miniplm.training.flags import add_arguments

_BUILDER = "megatron.core.datasets.blended_megatron_dataset_builder:BlendedMegatronDatasetBuilder"
_plugged_in = False


def plug_in() -> None:
    """Teach this process's Megatron our flags; again is harmless.

    Without a GPU, or without Transformer Engine, Megatron is prepared for that too, and `sys.argv` completed with the
    flags that it then needs.

    Raises:
        UnsupportedMegatronError: this Megatron is not one that this release knows, or has changed where it is patched.
    """
    from megatron_miniplm.mcore import program
    from megatron_miniplm.mcore.versions import PLUG_IN

    global _plugged_in
    if _plugged_in:
        return
    program.prepare(PLUG_IN)
    if multiprocessing.parent_process() is None:  # others have their parent's command line
        program.add_device_flags()
        program.ensure_rendezvous()
    for patch in PATCHES:
        patch.check()
    for patch in PATCHES:
        patch.apply()
    topics = ", ".join(patch.needed_by.split(":")[0] for patch in PATCHES)
    program.announce(f"patched in Megatron: {topics} (the table is in {__name__})")
    _plugged_in = True


def is_plugged_in() -> bool:
    return _plugged_in


def _flags(original: Callable[..., argparse.ArgumentParser]) -> Callable[..., argparse.ArgumentParser]:
    @wraps(original)
    def add_megatron_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser = original(parser)
        shorten(parser, _leave)
        return add_arguments(parser)

    return add_megatron_arguments


def _leave(error: UsageError) -> NoReturn:
    """As argparse does; a script of the user's knows nothing of our errors."""
    error.reported_elsewhere = os.environ.get("RANK", "0") != "0"
    sys.exit(report(error))


def _builder_init(original: Callable[..., None]) -> Callable[..., None]:
    @wraps(original)
    def init(self: Any, cls: Any, sizes: Any, is_built_on_rank: Any, config: Any) -> None:
        refined = _of_training("dataset").refined_class(cls, config)
        original(self, refined, sizes, is_built_on_rank, config)

    return init


def _build_generic_dataset(original: Callable[..., Any]) -> Any:
    @wraps(original)
    def build_generic_dataset(cls: Any, is_built_on_rank: Any, synchronize_ranks: bool, *args: Any) -> Any:
        checks = _of_training("index_cache")
        checks.check_prefix_of(cls, args)
        built = _of_training("dataset").safely_cached(cls)
        try:
            dataset = original(built, is_built_on_rank, synchronize_ranks, *args)
        except Exception as error:
            # It turns an OSError into a bare Exception that names an attribute of a class.
            if isinstance(error.__cause__, OSError):
                raise _of_training("index_cache").unwritable_cache(error.__cause__, args[-1].path_to_cache) from error
            raise
        checks.warn_of_stale_cache(dataset)
        return dataset

    return staticmethod(build_generic_dataset)


def _train_step(original: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(original)
    def train_step(
        forward_step_func: Any,
        data_iterator: Any,
        model: Any,
        optimizer: Any,
        opt_param_scheduler: Any,
        config: Any,
        forward_backward_func: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        forward_step_func, forward_backward_func = _of_training("step").refined_step(
            forward_step_func, forward_backward_func, model
        )
        return original(
            forward_step_func,
            data_iterator,
            model,
            optimizer,
            opt_param_scheduler,
            config,
            forward_backward_func,
            *rest,
            **named,
        )

    return train_step


def _write_results_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    """Start its process so that stop signals and the script's imports do not reach it.

    The process inherits the signal mask: SLURM tells every process of a step to stop, and ranks need this one to save.
    It also imports the main module again, which for a training script is all of torch and Megatron, although it only
    serves a queue.
    """

    @wraps(original)
    def get_write_results_queue(*args: Any, **named: Any) -> Any:
        resource_tracker.ensure_running()  # its start, otherwise during that of the process, would clear the mask
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            with _without_main_module():
                return original(*args, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    return get_write_results_queue


@contextlib.contextmanager
def _without_main_module() -> Iterator[None]:
    """Let processes be spawned that do not import `__main__`: `multiprocessing.spawn.get_preparation_data` names it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _of_training(module: str) -> Any:
    """A module of ours that imports Megatron's; plugging in must not, or it would fix what the script may configure."""
    return importlib.import_module(f"megatron_miniplm.training.{module}")


PATCHES: tuple[Patch, ...] = (
    Patch(
        "megatron.training.arguments:add_megatron_arguments",
        _flags,
        "our flags: training/arguments.py:136, where `parse_args` fills the parser",
        ("parser",),
    ),
    Patch(
        f"{_BUILDER}.__init__",
        _builder_init,
        "selected data: core/datasets/blended_megatron_dataset_builder.py:46, where a script names its dataset class",
        ("self", "cls", "sizes", "is_built_on_rank", "config"),
    ),
    Patch(
        f"{_BUILDER}.build_generic_dataset",
        _build_generic_dataset,
        "index caches: core/datasets/blended_dataset.py:156, which writes them in place and reads what is half-written",
        ("cls", "is_built_on_rank", "synchronize_ranks"),
    ),
    Patch(
        "megatron.training.training:train_step",
        _train_step,
        "loss weights, distillation and what is logged: training/training.py:3856, the only caller",
        (
            "forward_step_func",
            "data_iterator",
            "model",
            "optimizer",
            "opt_param_scheduler",
            "config",
            "forward_backward_func",
        ),
    ),
    Patch(
        "megatron.core.dist_checkpointing.strategies.filesystem_async:get_write_results_queue",
        _write_results_queue,
        "checkpoints after --exit-signal-handler: core/dist_checkpointing/strategies/filesystem_async.py:65, a process",
    ),
)
