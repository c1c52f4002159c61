#!/usr/bin/env python3
"""Peak memory of `token_nll` beyond its operands, for one number of tokens and vocabulary rows: one JSON line.

python benchmarks/vocabulary_memory.py TOKENS ROWS
"""

import json
import re
import sys
from pathlib import Path

import torch

from megatron_miniplm.scoring.nll import token_nll

HIDDEN_SIZE = 256


def forget_peak() -> None:
    """The kernel's peak starts anew from what is resident now; `ru_maxrss` would keep that of the parent process."""
    Path("/proc/self/clear_refs").write_text("5")


def resident_bytes(name: str) -> int:
    """`VmRSS` now, `VmHWM` at most."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    num_tokens, num_rows = map(int, sys.argv[1:])
    hidden_TH = torch.randn(num_tokens, HIDDEN_SIZE)
    weight_VH = torch.randn(num_rows, HIDDEN_SIZE)
    target_T = torch.randint(num_rows, (num_tokens,))
    with torch.inference_mode():
        warm_TH = torch.randn(64, HIDDEN_SIZE)
        torch.mm(warm_TH, weight_VH[:64].t())  # the library's own buffers
        forget_peak()
        before = resident_bytes("VmRSS")
        nll_T = token_nll(hidden_TH, weight_VH, target_T, first_row=0, vocab_size=num_rows, group=None)
    assert bool(torch.isfinite(nll_T).all())
    print(json.dumps({"peak_bytes": resident_bytes("VmHWM") - before}))


if __name__ == "__main__":
    main()
