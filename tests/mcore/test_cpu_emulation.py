"""The patches meet the installed torch and Megatron; in processes of their own, which they change for good."""

import subprocess
import sys

import pytest

from megatron_miniplm.mcore.cpu_emulation import PATCHES

EMULATED = """
import os
os.environ["MINIPLM_DEVICE"] = "cpu"
from megatron_miniplm.mcore import cpu_emulation
assert cpu_emulation.wanted() and not cpu_emulation.is_active()
cpu_emulation.activate()
import torch
first = torch.cuda.current_stream
cpu_emulation.activate()
assert cpu_emulation.is_active() and torch.cuda.current_stream is first, "applied once a process"

for device in ("cuda", "cuda:1", torch.device("cuda"), 0, torch.cuda.current_device(), None, "cpu"):
    assert torch.zeros(2, device=device).device.type == "cpu"
assert torch.zeros(2, device="meta").device.type == "meta"
tensor = torch.arange(3.0)
assert tensor.cuda() is tensor
assert tensor.to(torch.float64).dtype == torch.float64
assert torch.zeros(1, device=torch.device("cuda", 1)).device.type == torch.zeros(1, device=0).device.type == "cpu"
assert tensor.type() == "torch.cuda.FloatTensor"
assert torch.cuda.is_available() and torch.cuda.device_count() >= 8
with torch.cuda.stream(torch.cuda.Stream()):
    torch.cuda.current_stream().wait_stream(torch.cuda.Stream())
torch.cuda.synchronize()

from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
parameter = torch.zeros(2)
((_, _, (_, [(_, saved)])),) = FileSystemWriterAsync.preload_tensors([("file", "key", ([], [("item", parameter)]))])
parameter += 1
assert saved.tolist() == [0, 0], "an asynchronous save writes what was there when it began"

torch.manual_seed(5)
state = torch.cuda.get_rng_state()
drawn = torch.rand(4)
torch.set_rng_state(state)
assert torch.equal(torch.rand(4), drawn), "the generator of the device is the CPU's"

state = torch.get_rng_state()
loader = torch.utils.data.DataLoader([1, 2, 3], batch_size=3, pin_memory=True)
assert next(iter(loader)).tolist() == [1, 2, 3]
assert torch.equal(torch.get_rng_state(), state), "a new iterator leaves the generator alone"
"""

UNWANTED = """
import torch
torch.cuda.is_available = lambda: True
from megatron_miniplm.mcore import cpu_emulation
assert not cpu_emulation.wanted()
"""


@pytest.mark.parametrize("script", [EMULATED, UNWANTED], ids=["emulated", "unwanted"])
def test_in_a_fresh_process(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIPLM_DEVICE", raising=False)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-4000:]


def test_every_patch_names_the_line_that_needs_it() -> None:
    assert all(patch.needed_by for patch in PATCHES)
    assert len({patch.target for patch in PATCHES}) == len(PATCHES)
