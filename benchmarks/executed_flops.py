#!/usr/bin/env python3
"""Run one of our Megatron programs as it is, in one process, and measure the part that computes.

  python benchmarks/executed_flops.py count FOUND.json pretrain <flags of megatron_miniplm.pretrain_gpt>
  python benchmarks/executed_flops.py time FOUND.json score-corpus <flags>

Measured is every call of Megatron's `train_step`, or of `fill_store`, which scores all blocks. `count` counts the
matrix products that torch executes there: its FlopCounterMode sees every operator below autograd, so that backward
passes and recomputation are in it. `time` takes the CPU time of each call, without the counter: it says what the work
takes on a machine that others use, too. FOUND.json holds `flops` or `cpu_seconds`, one number a call.
"""

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts import write_json


def main() -> None:
    quantity, found_path, program, *flags = sys.argv[1:]
    sys.argv[:] = [program, *flags]
    run, module, function = prepare_pretraining() if program == "pretrain" else prepare_scoring(flags)
    found: list[float] = []
    measured = counted if quantity == "count" else timed
    setattr(module, function, measured(getattr(module, function), found))
    run()
    write_json(Path(found_path), {"flops" if quantity == "count" else "cpu_seconds": found})


def prepare_pretraining() -> tuple[Callable[[], object], Any, str]:
    """What megatron_miniplm/pretrain_gpt.py does, and the function of Megatron that is one step."""
    from megatron_miniplm.mcore import program

    program.prepare()
    from megatron_miniplm.training.plugin import plug_in

    plug_in()
    from megatron.training import training

    from megatron_miniplm.training import student

    return student.main, training, "train_step"


def prepare_scoring(flags: list[str]) -> tuple[Callable[[], object], Any, str]:
    from megatron_miniplm.mcore import program

    program.prepare()
    engine = importlib.import_module("megatron_miniplm.scoring.engine")
    command = importlib.import_module("megatron_miniplm.commands.score_corpus")
    return lambda: command.run(flags), engine, "fill_store"


def counted(function: Callable[..., Any], found: list[float]) -> Callable[..., Any]:
    def count(*args: Any, **kwargs: Any) -> Any:
        with flop_counter() as counter:
            result = function(*args, **kwargs)
        found.append(counter.get_total_flops())
        return result

    return count


def timed(function: Callable[..., Any], found: list[float]) -> Callable[..., Any]:
    def clock(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        result = function(*args, **kwargs)
        found.append(time.process_time() - start)
        return result

    return clock


def flop_counter() -> Any:
    """torch's counter, told of the attention kernel of CPUs, which it does not know and would leave out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def cpu_attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={kernel: cpu_attention})


if __name__ == "__main__":
    main()
