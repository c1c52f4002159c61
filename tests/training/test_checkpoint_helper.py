"""The process that Megatron starts at the first save, for a queue of results.

SLURM sends SIGTERM to every process of a step, which this one must outlive. It must not run the training script again.
"""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys
with open(__file__ + ".imports", "a") as imports:
    print(__name__, file=imports)
if __name__ == "__main__":
    sys.argv = ["pretrain_gpt.py"]
    if {with_plugin}:
        from megatron_miniplm.training.plugin import plug_in
        plug_in()
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    received = []
    signal.signal(signal.SIGTERM, lambda *arguments: received.append(1))
    queue = filesystem_async.get_write_results_queue()
    with open(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children") as children:
        helpers = [int(pid) for pid in children.read().split()]
    for pid in [*helpers, os.getpid()]:
        os.kill(pid, signal.SIGTERM)
    signal.sigtimedwait([signal.SIGCHLD], 0.5)
    queue.put("saved")
    print(len(helpers), queue.get(), len(received))
"""


@pytest.mark.slow
@pytest.mark.parametrize("with_plugin", [True, False])
def test_the_helper_outlives_sigterm(tmp_path: Path, with_plugin: bool) -> None:
    path = f"{tmp_path}/program.py"
    with open(path, "w") as stream:
        stream.write(PROGRAM.format(with_plugin=with_plugin))
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=120)
    if with_plugin:
        num_helpers, word, num_received = done.stdout.split()[-3:]
        assert (word, num_received) == ("saved", "1"), "the rank itself is still told"
        assert int(num_helpers) >= 1
        assert Path(f"{path}.imports").read_text().split() == ["__main__"], "the helper ran the script again"
    else:
        assert done.returncode != 0, "Megatron's own helper outlives it by now: the patch can go"
