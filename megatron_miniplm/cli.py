"""The `miniplm` command: one subcommand a tool, the same code as `tools/*.py`.

A command is a module of `megatron_miniplm.commands` with `add_arguments(parser)` and `run(arguments)`; its docstring is
its `--help`. Only the module of the command that runs is imported, so that `--help` costs milliseconds. Megatron
programs have their own parser (Megatron's) and are listed by module only.
"""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import TextIO, cast

from megatron_miniplm.commands import COMMANDS, MEGATRON_PROGRAMS, flags_of, module_of
from megatron_miniplm.errors import EXIT_RESUMABLE, STOP_SIGNALS, MiniPLMError, unusable_path
from megatron_miniplm.mcore.megatron_output import hide_unless_verbose
from megatron_miniplm.mcore.versions import find_megatron
from megatron_miniplm.runtime.command_line import (
    HELP_FLAGS,
    CommandParser,
    MissingFlagError,
    UsageError,
    announce_former_spellings,
    did_you_mean,
    print_help,
    print_version,
    report,
)
from megatron_miniplm.runtime.launchers import (
    adopt_srun,
    leave_exit_code,
    leave_exit_code_of_crashes,
)
from megatron_miniplm.runtime.requirements import missing, missing_packages_are_user_errors
from megatron_miniplm.runtime.terminal import PrintableFormatter, PrintableStream

DESCRIPTION = "Pretraining distillation by difference sampling (MiniPLM) for Megatron."


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `miniplm`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return run_tool(argv[0], argv[1:], program=f"miniplm {argv[0]}")
    width = max(map(len, COMMANDS))
    commands = "commands:\n" + "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    parser = CommandParser("miniplm", DESCRIPTION, epilog=commands, usage="%(prog)s command <flags>")
    parser.add_argument("command", nargs="?", metavar="command", help="see below; each has its own --help")
    try:
        if name := parser.parse_args(argv).command:
            raise UsageError(f"miniplm has no command {name}{did_you_mean(name, COMMANDS)} (--help lists the commands)")
    except UsageError as error:
        return report(error)
    parser.print_help()
    return 0


def run_tool(name: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command and turn what went wrong into an exit code.

    Returns:
        0 done, 2 bad input or usage (one line on stderr), 75 interrupted but resumable. A bug raises.
    """
    if name not in MEGATRON_PROGRAMS:
        # No tool multiplies matrices, and a process with threads that NumPy has started cannot be forked.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    argv = list(sys.argv[1:] if argv is None else argv)
    if print_version(argv, visible=os.environ.get("RANK", "0") == "0"):
        return 0
    announce_former_spellings(argv, visible=os.environ.get("RANK", "0") == "0")
    module = module_of(name)
    if not logging.root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(PrintableFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    with contextlib.redirect_stdout(cast(TextIO, PrintableStream(sys.stdout))):
        return _run(name, module, argv, program)


def _run(name: str, module: ModuleType, argv: list[str], program: str | None) -> int:
    told_to_stop: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told_to_stop.append(number)
        raise KeyboardInterrupt

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, interrupt)  # until the tool knows a better place to stop at
        if name in MEGATRON_PROGRAMS:
            if not set(HELP_FLAGS).isdisjoint(argv):
                if os.environ.get("RANK", "0") == "0":
                    print_help(program, module.__doc__, flags_of(name))
                return 0
            hide_unless_verbose()
            leave_exit_code_of_crashes()
            adopt_srun()
            if find_megatron().location is None:
                raise missing("megatron.core", f"miniplm {name}")
            with missing_packages_are_user_errors(f"miniplm {name}"):
                module.run(argv)
            return 0
        parser = CommandParser(program, module.__doc__)
        module.add_arguments(parser)
        arguments = parser.parse_args(argv)
        with missing_packages_are_user_errors(f"miniplm {name}"):
            return int(module.run(arguments) or 0)
    except MissingFlagError as error:
        suggested = error.with_suggestion(argv)
        suggested.reported_elsewhere = error.reported_elsewhere
        return report(suggested)
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # `| head` closed the pipe: no traceback, and nothing more to print
            return 0
        return report(unusable_path(error))
    except BaseException as error:
        # torch.distributed.checkpoint, for one, catches whatever is raised and raises its own.
        if not told_to_stop and not isinstance(error, KeyboardInterrupt):
            raise
        if os.environ.get("RANK", "0") == "0":
            print("interrupted; run the same command again to continue", file=sys.stderr)
        leave_exit_code(EXIT_RESUMABLE)
        return EXIT_RESUMABLE
