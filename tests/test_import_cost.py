"""What does not compute with a model must start at once, and without torch; so must the help of what does."""

import resource
import subprocess
import sys

import pytest

from megatron_miniplm.commands import COMMANDS

LIMIT_CPU_SECONDS = 0.5
NUM_TRIES = 3

PRINT_TORCH_ON_EXIT = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
STATEMENTS = {
    "import": "import megatron_miniplm",
    "pretrain_gpt": "import runpy; sys.argv[1:] = ['--help']; runpy.run_module('megatron_miniplm.pretrain_gpt', "
    "run_name='__main__')",
    **{name: f"from megatron_miniplm.cli import main; main([{name!r}, '--help'])" for name in COMMANDS},
}


def children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


@pytest.mark.parametrize("name", STATEMENTS)
def test_starts_without_torch_and_at_once(name: str) -> None:
    cpu_seconds = []
    for _ in range(NUM_TRIES):
        start = children_cpu_seconds()
        process = subprocess.run(
            [sys.executable, "-c", PRINT_TORCH_ON_EXIT + STATEMENTS[name]], capture_output=True, text=True
        )
        cpu_seconds.append(children_cpu_seconds() - start)
        assert process.returncode == 0, process.stderr
        assert process.stderr == "False\n"
        if name in COMMANDS:
            assert process.stdout.startswith(f"usage: miniplm {name}")
        assert len(process.stdout.splitlines()) < 130, "no longer than two screens"
        if cpu_seconds[-1] < LIMIT_CPU_SECONDS:
            break
    assert min(cpu_seconds) < LIMIT_CPU_SECONDS
