"""How every Megatron program of ours starts: device, flags, process groups, and errors that a user can read.

    with program.running(flags, add_our_flags) as args:   # our programs
        ...

    program.prepare()                       # training; at import: spawned children (asynchronous saves) need it too
    args = program.parse(add_our_flags)     # Megatron's own parser with one more argument group

`pretrain` initializes by itself; it needs `ensure_rendezvous` where it was not started by torchrun or srun. Megatron's
parser reads `sys.argv`: here it is written, and nowhere else but in `launch`, which gives a script its command line.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import re
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from megatron_miniplm.errors import InputError, MiniPLMError, unusable_path
from megatron_miniplm.mcore.device_flags import given_flags, with_device_flags
from megatron_miniplm.mcore.megatron_output import hidden, hint
from megatron_miniplm.mcore.versions import PROGRAMS, SupportedReleases, find_megatron, has_dataset_helpers
from megatron_miniplm.runtime.command_line import MissingFlagError, UsageError, accept_other_spellings, shorten
from megatron_miniplm.runtime.launchers import adopt_srun, leave_exit_code_of_crashes
from megatron_miniplm.runtime.processes import keep_freed_memory
from megatron_miniplm.runtime.requirements import missing
from megatron_miniplm.runtime.terminal import printable

AddArguments = Callable[[argparse.ArgumentParser], argparse.ArgumentParser]
_announced: set[str] = set()
#: How Megatron says that a flag is missing (training/arguments.py), with a message or without.
_MISSING = re.compile(r"(\w+) argument is None|assert args\.(\w+) is not None does not hold")


def prepare(supported: SupportedReleases = PROGRAMS) -> None:
    """Check the Megatron, choose the device, and supply what the wheel lacks. Call it before importing Megatron.

    Args:
        supported: the releases that will do for what is to run.

    Raises:
        UnsupportedMegatronError: Megatron is missing, or not one that this release knows.
        MissingPackageError: there is no torch.
    """
    megatron = find_megatron()
    megatron.require(supported)
    if importlib.util.find_spec("torch") is None:
        raise missing("torch")
    adopt_srun()
    leave_exit_code_of_crashes()
    if int(os.environ.get("RANK", "0")) != 0:
        warnings.simplefilter("ignore")  # rank 0 says it once
    # Advice to write another entry point; ours serves 0.18 too, which has no GPT config object.
    warnings.filterwarnings("ignore", message=r"\s*It is recommended to use a ModelConfig")
    from megatron_miniplm.mcore import cpu_emulation

    if cpu_emulation.wanted():
        # Megatron's jit_fuser is torch.compile; compiling for the CPU takes longer than a small run.
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
        # training/arguments.py:1437 asserts it with TP > 1, whatever the device.
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
        # Megatron says in ten places that kernels for GPUs are missing; `parse` says it once.
        warnings.filterwarnings("ignore", message="Transformer Engine and Apex|Apex is not|Only transformer-engine")
        _share_cores()
        keep_freed_memory()
        cpu_emulation.activate()
    _skip_helper_compilation()
    patched = f"patched to run on the CPU ({len(cpu_emulation.PATCHES)} places)" if cpu_emulation.is_active() else ""
    announce(f"Megatron-Core {megatron.version} in {megatron.location}{patched and ', '}{patched}{hint()}")


@contextlib.contextmanager
def running(
    flags: Sequence[str],
    add_arguments: AddArguments | None = None,
    defaults: dict[str, Any] | None = None,
    *,
    complete: Callable[[argparse.Namespace], object] = lambda args: None,
) -> Iterator[argparse.Namespace]:
    """A program of ours on Megatron: prepared, with parsed flags and process groups, which it leaves at the end.

    Args:
        flags: Megatron's and ours.
        add_arguments, defaults: as `parse` takes them.
        complete: changes the parsed flags before Megatron is initialised.

    Raises:
        MiniPLMError: the flags are refused; only rank 0 prints it.
    """
    with alike_on_all_ranks():
        set_flags(flags)
        prepare()
        args = parse(add_arguments, defaults)
        complete(args)
    initialize()
    try:
        yield args
    finally:
        shut_down()


def set_flags(flags: Sequence[str]) -> None:
    """Let Megatron's parser read these flags in place of those that the process was started with."""
    sys.argv[1:] = flags


def parse(add_arguments: AddArguments | None = None, defaults: dict[str, Any] | None = None) -> argparse.Namespace:
    """Megatron's `parse_and_validate_args` on `sys.argv`, with our flags as one more argument group.

    Without a GPU, or without Transformer Engine, the flags that Megatron then needs are added unless given, and printed
    once.

    Args:
        add_arguments: Megatron's `extra_args_provider`.
        defaults: values for flags that are None after parsing (Megatron's `args_defaults`).

    Raises:
        InputError: Megatron refused the flags; the message holds its reason.
    """
    parse_and_validate_args = _megatron_parser()
    add_device_flags()

    def extended(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
        shorten(parser, _raise)
        ours = add_arguments(parser) if add_arguments else parser
        accept_other_spellings(ours)
        return ours

    # `--eval-interval` has no default, and the training loop divides by it.
    given = given_flags(sys.argv[1:])
    defaults = {"eval_interval": 1000, **(defaults or {})}
    # Megatron warns about a default that the user overrides.
    unset = {name: value for name, value in defaults.items() if f"--{name.replace('_', '-')}" not in given}
    with hidden(), megatron_errors("these flags"):
        return parse_and_validate_args(extra_args_provider=extended, args_defaults=unset)


def _megatron_parser() -> Callable[..., argparse.Namespace]:
    """Megatron's `parse_and_validate_args`; of 0.17, under which inspect-batch runs too, its two halves."""
    from megatron.training import arguments

    if hasattr(arguments, "parse_and_validate_args"):
        return arguments.parse_and_validate_args

    def parse_and_validate_args(extra_args_provider: AddArguments, args_defaults: dict[str, Any]) -> argparse.Namespace:
        return arguments.validate_args(arguments.parse_args(extra_args_provider), args_defaults)

    return parse_and_validate_args


def args_of_run() -> Any:
    """Megatron's parsed flags; None in programs that parse none, where its `get_args` would fail."""
    from megatron.training import global_vars

    return global_vars._GLOBAL_ARGS


def add_device_flags() -> None:
    """Complete `sys.argv` with the flags that Megatron needs on this machine, and print those that were missing."""
    from megatron_miniplm.mcore import cpu_emulation

    if cpu_emulation.is_active():
        sys.argv[1:], added = with_device_flags(sys.argv[1:], "cpu")
        reason = "no GPU in use: Megatron runs on the CPU (gloo)"
    elif importlib.util.find_spec("transformer_engine") is None:
        sys.argv[1:], added = with_device_flags(sys.argv[1:], "local")
        reason = "no Transformer Engine: Megatron's local layers"
    else:
        return
    if added:
        say_once(f"{reason}, with these flags added: {' '.join(added)}")


def initialize() -> None:
    """Process groups, seeds and timers by `initialize_megatron`; a single process needs no torchrun."""
    from megatron.training.initialize import initialize_megatron

    ensure_rendezvous()
    with hidden():
        initialize_megatron()


def shut_down() -> None:
    """Leave the process groups, so that torch does not complain at exit."""
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def ensure_rendezvous() -> None:
    """Let a program that was started as plain `python` be its own world of one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "MASTER_PORT" not in os.environ:
        os.environ["MASTER_ADDR"] = "127.0.0.1"
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(listener.getsockname()[1])


@contextlib.contextmanager
def megatron_errors(what: str) -> Iterator[None]:
    """Turn Megatron's assertions about the user's input into one line that quotes them."""
    try:
        yield
    except MiniPLMError:
        raise
    except (AssertionError, ValueError, RuntimeError, OSError) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(str(error).split()) or f"{frame.line} does not hold"
        if missing := _MISSING.fullmatch(reason):
            flag = "--" + (missing[1] or missing[2]).removeprefix("encoder_").replace("_", "-")
            raise MissingFlagError(flag, f"Megatron needs it with {what}") from error
        raise InputError(
            f"Megatron refuses {what}: {reason} ({os.path.basename(frame.filename)}:{frame.lineno})"
        ) from error


@contextlib.contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """Where every rank meets the same error, because they all look at the same flags: rank 0 prints it."""
    try:
        yield
    except MiniPLMError as error:
        error.reported_elsewhere = os.environ.get("RANK", "0") != "0"
        raise


def on_rank_zero(check: Callable[[], Any]) -> Any:
    """Run `check` on rank 0 only and give its result to all: one process reads, a thousand do not.

    A `MiniPLMError` of rank 0 is raised on every rank, and marked so that only rank 0 prints it.
    """
    import torch.distributed

    outcome: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            outcome[0] = check()
        except MiniPLMError as error:
            outcome[1] = error
        except OSError as error:
            outcome[1] = unusable_path(error)
    torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        outcome[1].reported_elsewhere = torch.distributed.get_rank() != 0
        raise outcome[1]
    return outcome[0]


def announce(line: str) -> None:
    """Say on stderr what was found or changed, on the first rank only, once; spawned processes say nothing."""
    # `parent_process` is not set yet while a spawned process imports the main module; its name is.
    is_spawned = multiprocessing.current_process().name != "MainProcess"
    if line in _announced or os.environ.get("RANK", "0") != "0" or is_spawned:
        return
    _announced.add(line)
    print(printable(line), file=sys.stderr, flush=True)


def say_once(line: str) -> None:
    """Print on the first rank only; works before process groups exist."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(printable(line), flush=True)


def _share_cores() -> None:
    """Give each process of this machine its share of the cores, unless OMP_NUM_THREADS says otherwise."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))


def _skip_helper_compilation() -> None:
    """`initialize_megatron` runs `make` in core/datasets, whose Makefile the 0.19 wheel lacks; its product is there."""
    from megatron.core.datasets import utils

    if has_dataset_helpers():
        utils.compile_helpers = lambda: None


def _raise(error: UsageError) -> NoReturn:
    raise error
