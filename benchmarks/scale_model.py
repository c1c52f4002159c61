"""The model behind simulate_scale.py: replicas that claim blocks, a file server, stragglers, nodes that fail.

Every replica claims a block, works, publishes, and claims the next. A node that fails ends its whole job (torch's
process groups do not outlive a member): blocks in hand are lost and free again when their leases have expired, and the
job comes back after a while. The file server is one queue. What a step costs it is what strace counted of the real
code (`CallCosts`); the calls of one step go one after the other, a round trip each. Blocks differ by a log-normal
factor of mean 1. Equal seeds give equal results.
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np

EXPIRY_SECONDS = 60.0
RENEW_SECONDS = 10.0
_READY, _PUBLISH, _FAIL, _RESTART = range(4)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is simulated.

    Attributes:
        nodes_per_job: 0: all nodes are one job.
        hours: of work for all ranks at their speed, so that the corpus grows with the ranks; without `num_blocks`.
        num_blocks: of a corpus that does not grow.
        block_spread: standard deviation of the logarithm of a block's work.
        failures_per_hour: of 100 nodes.
    """

    num_ranks: int
    ranks_per_replica: int = 1
    ranks_per_node: int = 8
    nodes_per_job: int = 1
    hours: float = 6.0
    num_blocks: int | None = None
    block_seconds: float = 60.0
    block_spread: float = 0.3
    straggler_fraction: float = 0.01
    straggler_slowdown: float = 3.0
    failures_per_hour: float = 1.0
    restart_seconds: float = 180.0
    server_ops: float = 20_000.0
    round_trip_seconds: float = 0.0005
    seed: int = 0

    @property
    def num_replicas(self) -> int:
        return self.num_ranks // self.ranks_per_replica


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it.

    Attributes:
        utilisation: work of all published blocks, by what all ranks could have done until the last was published; a
            straggler can do a third. Ranks that are down could have worked.
        lost_fraction: work that failures undid, of the same.
        num_redone: blocks that had to be begun again.
        wait_seconds, max_wait_seconds: from a block's end to the start of the next, publication included.
        tail_seconds: from the first replica that found nothing to do until the end.
        server_ops_per_second: the mean.
        server_busy_fraction: of the time.
        listings_per_replica: of the directory of blocks.
    """

    num_ranks: int
    num_blocks: int
    wall_hours: float
    utilisation: float
    num_failures: int
    lost_fraction: float
    num_redone: int
    wait_seconds: float
    max_wait_seconds: float
    tail_seconds: float
    server_ops_per_second: float
    server_busy_fraction: float
    listings_per_replica: float
    claim_ops: float


class CallCosts:
    """System calls of each step, counted with strace beside 8 and 1,024 processes; seconds of a client's processor."""

    PUBLISH_AND_RELEASE = 23
    CLAIM = 3
    RENEWAL = 2
    LOOK = 8  # at a block that another works on
    MAX_LOOKS = 8
    LISTING = 4
    LEASES_A_READ, BLOCKS_A_READ = 819, 1024  # names in one answer of getdents64
    SECONDS_PER_LOOK = 3e-4
    SECONDS_PER_BLOCK = 2.2e-6  # of a listing

    @classmethod
    def listing(cls, num_names: int, names_a_read: int) -> int:
        return cls.LISTING + -(-num_names // names_a_read)


class Server:
    """A queue: so many calls a second, beside the renewals of leases, which are always there."""

    def __init__(self, settings: Settings) -> None:
        self._seconds_per_op = 1 / (settings.server_ops - CallCosts.RENEWAL * settings.num_replicas / RENEW_SECONDS)
        self._round_trip_seconds = settings.round_trip_seconds
        self._free_at = 0.0
        self.num_ops = 0

    def call(self, now: float, num_ops: int, client_seconds: float) -> float:
        """When a client is done that begins now."""
        self.num_ops += num_ops
        self._free_at = max(self._free_at, now) + num_ops * self._seconds_per_op
        return max(self._free_at, now + num_ops * self._round_trip_seconds) + client_seconds

    @property
    def busy_seconds(self) -> float:
        return self.num_ops * self._seconds_per_op


class Replica:
    """What one replica has in hand, and how much it knows of the others."""

    def __init__(self, job: int, speed: float) -> None:
        self.job = job
        self.speed = speed
        self.restart()

    def restart(self) -> None:
        self.block: float | None = None  # work, seconds of a rank of normal speed
        self.began_at = 0.0
        self.num_known = 0  # blocks on its list that it does not know to be published
        self.num_misses_left = 0


class Simulation:
    """One run; see the module."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._rng = np.random.default_rng(settings.seed)
        self._replicas, self._jobs = self._machines()
        self._capacity = sum(replica.speed for replica in self._replicas)
        num_blocks = settings.num_blocks or round(settings.hours * 3600 / settings.block_seconds * self._capacity)
        self._blocks = self._works(num_blocks)
        self._server = Server(settings)
        self._uniform = iter(list[float]())
        self._num_begun = self._num_in_hand = self._num_published = self._num_listings = self._num_claims = (
            self._num_claim_ops
        ) = 0
        self._lost: list[tuple[float, float]] = []  # free from, work: blocks of the dead
        self._num_redone, self._num_failures, self._lost_work = 0, 0, 0.0
        self._wait_seconds = self._max_wait_seconds = 0.0
        self._first_idle_at = math.inf
        self._epochs = [0] * len(self._jobs)  # of each job; an event of an earlier one is void
        self._events: list[tuple[float, int, int, int]] = []  # time, replica or -1 - job, epoch, kind

    def _machines(self) -> tuple[list[Replica], list[list[int]]]:
        """The replicas, and those of each job."""
        num_replicas = self.settings.num_replicas
        num_stragglers = math.ceil(self.settings.straggler_fraction * num_replicas - 1e-9)
        slow = set(self._rng.permutation(num_replicas)[:num_stragglers].tolist())
        ranks_per_job = self.settings.nodes_per_job * self.settings.ranks_per_node or self.settings.num_ranks
        per_job = max(1, ranks_per_job // self.settings.ranks_per_replica)
        replicas = [
            Replica(number // per_job, 1 / self.settings.straggler_slowdown if number in slow else 1.0)
            for number in range(num_replicas)
        ]
        return replicas, [
            list(range(start, min(start + per_job, num_replicas))) for start in range(0, num_replicas, per_job)
        ]

    def _works(self, num_blocks: int) -> np.ndarray:
        spread = self.settings.block_spread
        return self.settings.block_seconds * self._rng.lognormal(-spread * spread / 2, spread, num_blocks)

    def run(self) -> Outcome:
        for number in range(len(self._replicas)):
            heapq.heappush(self._events, (0.0, number, 0, _READY))
        for job in range(len(self._jobs)):
            self._plan_failure(0.0, job)
        now = 0.0
        while self._num_published < len(self._blocks):
            now, who, epoch, kind = heapq.heappop(self._events)
            job = -1 - who if who < 0 else self._replicas[who].job
            if epoch != self._epochs[job]:
                continue
            if kind == _FAIL:
                self._fail(now, job)
            elif kind == _RESTART:
                for number in self._jobs[job]:
                    heapq.heappush(self._events, (now, number, epoch, _READY))
                self._plan_failure(now, job)
            else:
                self._next_block(now, who, is_published=kind == _PUBLISH)
        return self._outcome(now)

    def _plan_failure(self, now: float, job: int) -> None:
        num_nodes = len(self._jobs[job]) * self.settings.ranks_per_replica / self.settings.ranks_per_node
        rate = self.settings.failures_per_hour / 100 * num_nodes / 3600
        if rate:
            after = self._rng.exponential(1 / rate)
            heapq.heappush(self._events, (now + after, -1 - job, self._epochs[job], _FAIL))

    def _fail(self, now: float, job: int) -> None:
        """A node of the job fails, and the job with it."""
        self._num_failures += 1
        self._epochs[job] += 1
        for number in self._jobs[job]:
            replica = self._replicas[number]
            if replica.block is not None:
                self._num_redone += 1
                self._num_in_hand -= 1
                self._lost_work += min(max(0.0, now - replica.began_at) * replica.speed, replica.block)
                heapq.heappush(self._lost, (now + EXPIRY_SECONDS, replica.block))
            replica.restart()
        heapq.heappush(self._events, (now + self.settings.restart_seconds, -1 - job, self._epochs[job], _RESTART))

    def _next_block(self, now: float, number: int, *, is_published: bool) -> None:
        """Publish what is in hand, if so, and claim; at the server both are one piece of work."""
        replica = self._replicas[number]
        num_ops = 0
        if is_published:
            self._num_published += 1
            self._num_in_hand -= 1
            replica.block = None
            if self._num_published == len(self._blocks):
                return
            num_ops = CallCosts.PUBLISH_AND_RELEASE
        is_free = self._num_begun < len(self._blocks) or bool(self._lost and self._lost[0][0] <= now)
        claim_ops, client_seconds = self._ask(replica, is_free)
        done_at = self._server.call(now, num_ops + claim_ops, client_seconds)
        epoch = self._epochs[replica.job]
        if not is_free:
            self._first_idle_at = min(self._first_idle_at, now)
            pause_seconds = min(max(1.0, len(self._replicas) / 100), 30.0)
            heapq.heappush(self._events, (done_at + pause_seconds, number, epoch, _READY))
            return
        if self._lost and self._lost[0][0] <= now:
            replica.block = heapq.heappop(self._lost)[1]
        else:
            replica.block = float(self._blocks[self._num_begun])
            self._num_begun += 1
        replica.began_at = done_at
        self._num_in_hand += 1
        self._num_claims += 1
        self._num_claim_ops += claim_ops
        self._wait_seconds += done_at - now
        self._max_wait_seconds = max(self._max_wait_seconds, done_at - now)
        heapq.heappush(self._events, (done_at + replica.block / replica.speed, number, epoch, _PUBLISH))

    def _ask(self, replica: Replica, is_free: bool) -> tuple[int, float]:
        """Calls and seconds of one `BlockQueue.take`."""
        num_missing = len(self._blocks) - self._num_published
        num_ops, seconds = 0, 0.0
        num_misses = max(0, replica.num_known - num_missing)
        if is_free and num_misses:
            num_misses = self._num_before(num_missing / replica.num_known)
        if replica.num_misses_left <= num_misses:
            num_ops += max(0, replica.num_misses_left) + CallCosts.listing(self._num_published, CallCosts.BLOCKS_A_READ)
            seconds += self._num_published * CallCosts.SECONDS_PER_BLOCK
            self._num_listings += 1
            replica.num_known = num_missing
            replica.num_misses_left = max(8, len(self._blocks) // 1000)
            num_misses = 0
        replica.num_known -= num_misses
        replica.num_misses_left -= num_misses
        num_held = min(self._num_in_hand, CallCosts.MAX_LOOKS)
        if is_free:
            num_held = min(num_held, self._num_before(1 - self._num_in_hand / num_missing))
        if num_held == CallCosts.MAX_LOOKS or not is_free:
            num_ops += CallCosts.listing(2 * len(self._replicas), CallCosts.LEASES_A_READ)
        num_ops += num_misses + num_held * CallCosts.LOOK + is_free * CallCosts.CLAIM
        return num_ops, seconds + num_held * CallCosts.SECONDS_PER_LOOK

    def _num_before(self, chance: float) -> int:
        """How many blocks come up before the first that is wanted, each of which is so by this chance."""
        return int(math.log(1 - self._random()) / math.log(1 - chance)) if chance < 1 else 0

    def _random(self) -> float:
        number = next(self._uniform, None)
        if number is None:
            self._uniform = iter(self._rng.random(65536).tolist())
            number = next(self._uniform)
        return number

    def _outcome(self, end: float) -> Outcome:
        possible = self._capacity * end
        renewal_ops = CallCosts.RENEWAL * end * len(self._replicas) / RENEW_SECONDS
        return Outcome(
            num_ranks=self.settings.num_ranks,
            num_blocks=len(self._blocks),
            wall_hours=end / 3600,
            utilisation=float(self._blocks.sum()) / possible,
            num_failures=self._num_failures,
            lost_fraction=self._lost_work / possible,
            num_redone=self._num_redone,
            wait_seconds=self._wait_seconds / self._num_claims,
            max_wait_seconds=self._max_wait_seconds,
            tail_seconds=max(0.0, end - self._first_idle_at),
            server_ops_per_second=(self._server.num_ops + renewal_ops) / end,
            server_busy_fraction=min(1.0, self._server.busy_seconds / end),
            listings_per_replica=self._num_listings / len(self._replicas),
            claim_ops=self._num_claim_ops / self._num_claims,
        )
