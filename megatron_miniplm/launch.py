"""Run a training script of Megatron-LM, unmodified, with our flags: every script that calls `megatron.training`.

    torchrun --nproc-per-node 8 -m megatron_miniplm.launch path/to/pretrain_gpt.py <its flags> --miniplm-selection DIR

The script runs as `python path/to/pretrain_gpt.py` would run it, in a Megatron that `training.plugin` has patched. The
processes that Megatron spawns for asynchronous saves import the main module again, by the name of its `__spec__`. That
is this module, so they are patched too; there the script is run as `__mp_main__`, past its `if __name__ == "__main__"`.
"""

import os
import sys
from pathlib import Path
from types import CodeType
from typing import Any

from megatron_miniplm.errors import InputError, MiniPLMError, unusable_path
from megatron_miniplm.mcore import program
from megatron_miniplm.runtime.command_line import print_help, print_version, report
from megatron_miniplm.runtime.launchers import adopt_srun, leave_exit_code_of_crashes
from megatron_miniplm.runtime.requirements import missing_packages_are_user_errors
from megatron_miniplm.training.flags import DRY_RUN_ELSEWHERE, add_arguments
from megatron_miniplm.training.plugin import plug_in

USAGE = "torchrun ... -m megatron_miniplm.launch path/to/pretrain_gpt.py <its flags>"
#: Absolute path of the script, for spawned processes: runpy hides `sys.argv[0]` while they import the main module.
SCRIPT_VARIABLE = "MINIPLM_LAUNCHED_SCRIPT"


def run(namespace: dict[str, Any]) -> None:
    """Run the script of the command line, or in a spawned process that of the parent, in the main module's namespace.

    Args:
        namespace: of `__main__`; what the script defines is found there, so that its functions can be pickled.
    """
    leave_exit_code_of_crashes()
    try:
        adopt_srun()
        if namespace["__name__"] == "__main__":
            with program.alike_on_all_ranks():
                script, flags = _command_line(sys.argv[1:])
            path = os.path.abspath(script)
            code = _compiled(path)
            sys.argv[:] = [script, *flags]
            _put_first_on_path(os.path.dirname(os.path.realpath(path)))
            os.environ[SCRIPT_VARIABLE] = path
        else:
            path = os.environ[SCRIPT_VARIABLE]
            code = _compiled(path)
        with missing_packages_are_user_errors():
            plug_in()
        _become(namespace, path)
        exec(code, namespace)
    except MiniPLMError as error:
        sys.exit(report(error))


def _command_line(arguments: list[str]) -> tuple[str, list[str]]:
    if arguments and arguments[0] in ("-h", "--help"):
        print_help(None, __doc__, [add_arguments], USAGE)
        sys.exit(0)
    if print_version(arguments[:1]):  # behind the script it is the script's
        sys.exit(0)
    if not arguments or arguments[0].startswith("-"):
        found = f"found {arguments[0]} in its place" if arguments else "found nothing"
        raise InputError(f"expected the training script as the first argument, {found}: {USAGE}")
    if "--miniplm-dry-run" in arguments:
        raise InputError(DRY_RUN_ELSEWHERE)
    return arguments[0], arguments[1:]


def _compiled(path: str) -> CodeType:
    """The script under its own name, so that tracebacks show its lines."""
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "does not exist"
        raise InputError(f"{path} {what}; expected a training script such as pretrain_gpt.py: {USAGE}")
    try:
        return compile(Path(path).read_bytes(), path, "exec", dont_inherit=True)
    except OSError as error:
        raise unusable_path(error) from None
    except (SyntaxError, ValueError) as error:
        place = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise InputError(f"{path}{place} is not Python ({reason}); expected a training script: {USAGE}") from None


def _put_first_on_path(directory: str) -> None:
    """As `python SCRIPT` does, in place of the working directory that `python -m` puts there."""
    if sys.flags.safe_path:
        return
    replaced, sys.path[0] = sys.path[0], directory
    ours = str(Path(__file__).parents[1])
    if replaced == ours and ours not in sys.path:
        sys.path.append(ours)  # run from our source tree: spawned processes import this module by its name


def _become(namespace: dict[str, Any], path: str) -> None:
    """Leave of the main module what a script's namespace begins with; its `__spec__` is what spawned processes run."""
    kept = {name: namespace[name] for name in ("__name__", "__builtins__", "__spec__", "__loader__")}
    namespace.clear()
    namespace.update(kept, __file__=path, __doc__=None, __package__=None, __cached__=None)


if __name__ in ("__main__", "__mp_main__"):
    # By the imported module: its functions keep their names when this namespace becomes the script's.
    from megatron_miniplm import launch

    launch.run(globals())
