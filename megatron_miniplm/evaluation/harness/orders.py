"""Rank 0 decides what is done next, and the other ranks do it.

They wait for the next order at torch's rendezvous store, not in a collective: rank 0 may read data sets for longer than
any collective would wait.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch.distributed
from torch.distributed.distributed_c10d import _get_default_store

from megatron_miniplm.errors import MiniPLMError

POLL_SECONDS = 0.05
MAX_POLL_SECONDS = 1.0
_LEAVE, _FAIL = "leave", "fail"


class Orders:
    """The line from rank 0 to the others; made once a process."""

    def __init__(self) -> None:
        self._store = _get_default_store()
        self._num_given = 0

    @property
    def is_leader(self) -> bool:
        return torch.distributed.get_rank() == 0

    @contextmanager
    def leading(self) -> Iterator[None]:
        """On rank 0: whatever ends the block ends the others too."""
        try:
            yield
        except MiniPLMError:
            self.give(_FAIL)
            raise
        except BaseException:
            self.give(_LEAVE)  # they have nothing to say of it
            raise
        self.give(_LEAVE)

    def give(self, order: str) -> None:
        self._store.set(self._key(), order)
        self._num_given += 1

    def follow(self, actions: Mapping[str, Callable[[], object]]) -> None:
        """On the other ranks: carry out orders by name until it is over.

        Raises:
            MiniPLMError: rank 0 met an error, which it prints.
        """
        while (order := self._next()) in actions:
            actions[order]()
        if order == _FAIL:
            error = MiniPLMError("rank 0 cannot go on")
            error.reported_elsewhere = True
            raise error

    def _next(self) -> str:
        wait_seconds = POLL_SECONDS
        while not self._store.check([self._key()]):
            time.sleep(wait_seconds)
            wait_seconds = min(1.5 * wait_seconds, MAX_POLL_SECONDS)
        order = self._store.get(self._key()).decode()
        self._num_given += 1
        return order

    def _key(self) -> str:
        return f"miniplm/orders/{self._num_given}"
