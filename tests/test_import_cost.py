"""What does not compute with a model must start at once, and without torch."""

import subprocess
import sys
import time

import pytest

from megatron_miniplm.cli import COMMANDS, MEGATRON_PROGRAMS

LIMIT_SECONDS = 0.5
NUM_TRIES = 3

PRINT_TORCH_ON_EXIT = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr)); "
STATEMENTS = {
    "import": "import megatron_miniplm",
    **{
        name: f"from megatron_miniplm.cli import main; main([{name!r}, '--help'])"
        for name in COMMANDS
        if name not in MEGATRON_PROGRAMS
    },
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_starts_without_torch_and_at_once(name):
    wall_seconds = []
    for _ in range(NUM_TRIES):
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", PRINT_TORCH_ON_EXIT + STATEMENTS[name]], capture_output=True, text=True
        )
        wall_seconds.append(time.perf_counter() - start)
        assert process.returncode == 0, process.stderr
        assert process.stderr == "False\n"
        assert name == "import" or process.stdout.startswith(f"usage: miniplm {name}")
    assert min(wall_seconds) < LIMIT_SECONDS
