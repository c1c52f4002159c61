"""The ranks that hold one whole model and walk through the same rows.

Without expert parallelism a replica is TP x PP ranks, and there are DP of them. Experts are spread over ranks that are
data-parallel for everything else, so with EP a replica has several *lanes*: each takes its share of the rows, all take
equally many, and their sums are added. Replicas need nothing from one another while they score.
A signal to one rank, or an error on one, stops all of them once every replica has heard of it (`Stopping`).
"""

import signal
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch
import torch.distributed
from megatron.core import mpu
from torch.distributed.distributed_c10d import _get_default_store

from megatron_miniplm.errors import STOP_SIGNALS


@dataclass(frozen=True, kw_only=True)
class Replica:
    """This rank's place.

    Attributes:
        group: all ranks of the replica.
        lane, num_lanes: which share of the rows this rank computes, of how many.
        is_last_stage: whether it sees the hidden states that are projected to the vocabulary.
        is_collector: whether the token NLLs of its lane arrive here: one rank a lane.
        writer: global rank that claims blocks and writes them.
    """

    group: torch.distributed.ProcessGroup
    lane: int
    num_lanes: int
    is_last_stage: bool
    is_collector: bool
    writer: int

    @classmethod
    def of_this_rank(cls) -> "Replica":
        model_group = mpu.get_model_parallel_group()
        # Expert ranks nest with TP ranks: the larger of the two groups holds the other.
        group = max(model_group, mpu.get_expert_tensor_model_pipeline_parallel_group(), key=lambda one: one.size())
        num_lanes = group.size() // model_group.size()
        is_last_stage = mpu.is_pipeline_last_stage(ignore_virtual=True)
        is_collector = is_last_stage and mpu.get_tensor_model_parallel_rank() == 0
        lane = mpu.get_data_parallel_rank() % num_lanes
        ranks = torch.distributed.get_process_group_ranks(group)
        candidates = _max(torch.distributed.get_rank() if is_collector and lane == 0 else -1, group)
        assert candidates in ranks
        return cls(
            group=group,
            lane=lane,
            num_lanes=num_lanes,
            is_last_stage=is_last_stage,
            is_collector=is_collector,
            writer=candidates,
        )

    @property
    def is_writer(self) -> bool:
        return torch.distributed.get_rank() == self.writer

    def agree_max(self, value: int) -> int:
        """The largest of the ranks' values; a collective call."""
        return _max(value, self.group)

    def from_writer(self, numbers: list[int], *, size: int) -> list[int]:
        """The writer's numbers, at most `size`, on every rank; a collective call."""
        padded = np.full(size + 1, -1, np.int64)
        if self.is_writer:
            padded[: len(numbers) + 1] = (len(numbers), *numbers)
        tensor = torch.from_numpy(padded).to(_device())
        torch.distributed.broadcast(tensor, src=self.writer, group=self.group)
        count, *rest = tensor.tolist()
        return rest[:count]

    def add_lanes(self, sums_N: np.ndarray) -> np.ndarray:
        """Sum over the lanes. Each place is zero on all ranks but one, so that the result is exact in any order."""
        tensor = torch.from_numpy(sums_N).to(_device())
        torch.distributed.all_reduce(tensor, group=self.group)
        return tensor.cpu().numpy()


def _max(value: int, group: Any) -> int:
    tensor = torch.tensor(value, dtype=torch.int64, device=_device())
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX, group=group)
    return int(tensor.item())


def _device() -> Any:
    """The CPU under emulation, else this rank's GPU: where the process groups' backend wants its tensors."""
    return torch.cuda.current_device()


_KEY = "miniplm/stop"


class StopRequest:
    """Remembers a stop signal and passes it on to all ranks, through the store of torch's rendezvous.

    Asking costs one short message: replicas run at their own pace, so there is no collective that all could meet in.

    Attributes:
        came_by_signal: whether this very process got a signal.
    """

    def __init__(self) -> None:
        self.came_by_signal = False
        self._is_known = False
        self._store = _get_default_store()
        for number in STOP_SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.came_by_signal = True

    def make(self) -> None:
        """Ask all ranks to stop, without a signal: this one cannot go on."""
        self._store.set(_KEY, "1")
        self._is_known = True

    def is_made(self) -> bool:
        """Whether any rank was told to stop."""
        if self.came_by_signal and not self._is_known:
            self.make()
        return self._is_known or bool(self._store.check([_KEY]))
