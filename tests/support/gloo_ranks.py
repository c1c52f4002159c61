"""A body run on every rank of a real gloo group."""

import tempfile
from collections.abc import Callable
from typing import Any

import torch.distributed
import torch.multiprocessing


def run_ranks(body: Callable[..., None], num_ranks: int, *arguments: Any) -> None:
    """Call `body(rank, *arguments)` in `num_ranks` processes; any failure fails the caller with its traceback."""
    with tempfile.TemporaryDirectory() as directory:
        torch.multiprocessing.spawn(_rank, (num_ranks, f"{directory}/rendezvous", body, arguments), nprocs=num_ranks)


def _rank(rank: int, num_ranks: int, rendezvous: str, body: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=num_ranks)
    try:
        body(rank, *arguments)
    finally:
        torch.distributed.destroy_process_group()
