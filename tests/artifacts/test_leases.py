"""No two living processes claim one block, none is lost with a dead one, whatever the timing and the clocks."""

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from counted_calls import counted
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import leases as leases_module
from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.leases import Leases, Owner, in_flight, server_time_ns, socket_address
from megatron_miniplm.artifacts.score_blocks import BlockPlan
from megatron_miniplm.errors import InputError

HOUR_SECONDS = 3600


def names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "claims").iterdir()}


def claims(directory: Path) -> set[str]:
    return {name for name in names(directory) if not name.endswith(".lease")}


def age(leases: Leases, seconds: float) -> None:
    """Let the last renewal lie that far in the past."""
    leases._renewed_ns = server_time_ns(leases.directory) - int(seconds * 1e9)
    os.utime(leases.lease_path, ns=(leases._renewed_ns, leases._renewed_ns))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[[], Leases]]:
    """Leases of another process on the same store; they are never renewed by themselves."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Leases(tmp_path, renew_seconds=HOUR_SECONDS))


def test_a_block_has_one_holder(opened: Callable[[], Leases]) -> None:
    a, b = opened(), opened()
    assert a.claim(7)
    assert not b.claim(7)
    assert not a.claim(7), "it has it already"
    a.release(7)
    assert b.claim(7)
    with pytest.raises(KeyError):
        a.release(7)


def test_what_is_visible_is_whole_and_names_the_owner(opened: Callable[[], Leases], tmp_path: Path) -> None:
    a = opened()
    assert a.claim(12)
    assert names(tmp_path) == {a.lease_path.name, "00000012.0"}
    assert Owner.from_bytes((tmp_path / "claims" / "00000012.0").read_bytes()) == a.owner
    assert list(json.loads(a.lease_path.read_text())) == ["name", "host", "pid", "job", "since", "sockets"]


def test_nothing_is_left_at_the_end(tmp_path: Path) -> None:
    with Leases(tmp_path) as a, Leases(tmp_path) as b:
        assert a.claim(0)
        assert b.claim(2)
        a.release(0)
        a.__exit__()
        assert names(tmp_path) == {b.lease_path.name, "00000002.0"}
        b.release(2)
    assert not (tmp_path / "claims").exists()


def test_who_leaves_a_block_unfinished_removes_its_own_claim(opened: Callable[[], Leases], tmp_path: Path) -> None:
    dead, a, b = opened(), opened(), opened()
    assert dead.claim(3)
    age(dead, 90)
    assert a.claim(3)
    a.__exit__()
    assert claims(tmp_path) == {"00000003.0"}
    assert b.claim(3)
    assert claims(tmp_path) == {"00000003.0", "00000003.1"}


@pytest.mark.parametrize(("seconds", "taken_over"), [(30, False), (90, True), (-30, False), (-90, True)])
def test_takeover_by_age(opened: Callable[[], Leases], tmp_path: Path, seconds: float, taken_over: bool) -> None:
    """A renewal in the future: the clock of the file server has been set back."""
    a, b = opened(), opened()
    assert a.claim(3)
    age(a, seconds)
    assert b.claim(3) == taken_over
    assert ("00000003.1" in names(tmp_path)) == taken_over


def test_only_the_clock_of_the_file_server_counts(
    opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a day ahead of the hosts' clocks, which nobody asks."""
    utime, server_ns = os.utime, [time.time_ns() + 24 * HOUR_SECONDS * 10**9]
    a, b = opened(), opened()

    def stamped_by_server(path: Path, ns: tuple[int, int] | None = None) -> None:
        utime(path, ns=ns or (server_ns[0], server_ns[0]))

    def no_clock() -> int:
        raise AssertionError("a host's clock was asked")

    monkeypatch.setattr(os, "utime", stamped_by_server)
    for name in ("time", "time_ns", "monotonic"):
        monkeypatch.setattr(leases_module.time, name, no_clock)
    a._renew()
    assert a.claim(3)
    for seconds, taken_over in ((0, False), (59, False), (2, True)):
        server_ns[0] += seconds * 10**9
        assert b.claim(3) == taken_over


def test_a_pause_between_clock_and_claim_expires_nobody(
    opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`b` takes the time, is stopped for two minutes, and then reads a claim that has just been renewed."""
    a, b = opened(), opened()
    assert a.claim(3)
    before = [b._renew() - 120 * 10**9]
    monkeypatch.setattr(b, "_renew", lambda: before.pop() if before else Leases._renew(b))
    assert not b.claim(3)
    assert before == []


def test_a_stale_process_neither_steals_nor_removes(opened: Callable[[], Leases], tmp_path: Path) -> None:
    a, b, c = opened(), opened(), opened()
    assert a.claim(3)
    age(a, 90)
    assert b.claim(3)
    assert not a.claim(3)
    a.__exit__()  # without having published it
    assert claims(tmp_path) == {"00000003.0", "00000003.1"}, "somebody may be about to make the next"
    assert not c.claim(3)
    b.release(3)
    assert claims(tmp_path) == set()
    assert c.claim(3)


def test_a_stale_process_gives_up_all_its_blocks(opened: Callable[[], Leases], tmp_path: Path) -> None:
    """One of them has been taken over and published."""
    a, b, c = opened(), opened(), opened()
    assert a.claim(3)
    assert a.claim(4)
    age(a, 90)
    assert b.claim(3)
    b.release(3)
    a.__exit__()
    assert claims(tmp_path) == {"00000004.0"}
    assert c.claim(4)


def test_a_stale_process_that_publishes_leaves_the_claim_of_its_successor(
    opened: Callable[[], Leases], tmp_path: Path
) -> None:
    a, b = opened(), opened()
    assert a.claim(3)
    age(a, 90)
    assert b.claim(3)
    a.release(3)
    assert claims(tmp_path) == {"00000003.1"}
    b.release(3)
    assert claims(tmp_path) == set()


def test_release_removes_the_claims_of_the_dead(opened: Callable[[], Leases], tmp_path: Path) -> None:
    a, b, c = opened(), opened(), opened()
    for generation, leases in enumerate((a, b, c)):
        assert leases.claim(3), generation
        age(leases, 90)
    assert claims(tmp_path) == {"00000003.0", "00000003.1", "00000003.2"}
    c.release(3)
    assert claims(tmp_path) == set()
    a.release(3)  # comes back and finds its claim gone


def test_of_two_that_take_over_in_the_same_instant_one_does(
    opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen that generation 0 has expired."""
    dead, a, b = opened(), opened(), opened()
    assert dead.claim(3)
    age(dead, 90)
    may_pass, won = b._may_pass, []

    def look_then_lose(path: Path) -> bool:
        found = may_pass(path)
        if path.name == "00000003.0":
            won.append(a.claim(3))
        return found

    monkeypatch.setattr(b, "_may_pass", look_then_lose)
    assert not b.claim(3)
    assert won == [True]


def test_a_stale_process_that_leaves_while_it_is_taken_over_lets_nobody_else_in(
    opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves after `b` has seen that generation 0 has expired, and before `b` makes generation 1."""
    stale, b, c = opened(), opened(), opened()
    assert stale.claim(3)
    age(stale, 90)
    may_pass, won = b._may_pass, list[bool]()

    def look_then_lose(path: Path) -> bool:
        found = may_pass(path)
        if not won:
            stale.__exit__()
            won.append(c.claim(3))
        return found

    monkeypatch.setattr(b, "_may_pass", look_then_lose)
    assert not b.claim(3)
    assert won == [True]


def test_the_lease_is_renewed(tmp_path: Path) -> None:
    with Leases(tmp_path, renew_seconds=0.02) as a:
        age(a, 90)
        aged_ns = a.lease_path.stat().st_mtime_ns
        deadline = time.monotonic() + 5
        while a.lease_path.stat().st_mtime_ns == aged_ns:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server_time_ns(a.directory) - a.lease_path.stat().st_mtime_ns < 5e9
        a.lease_path.unlink()  # as `ScoreStore.finish` does
        time.sleep(0.06)
        assert not a.lease_path.exists()


def test_the_directory_may_vanish_under_us(opened: Callable[[], Leases], tmp_path: Path) -> None:
    a = opened()
    assert a.claim(0)
    for path in (tmp_path / "claims").iterdir():
        path.unlink()
    (tmp_path / "claims").rmdir()
    assert a.claim(1)
    a.release(0)
    assert names(tmp_path) == {a.lease_path.name, "00000001.0"}


HOLDER = """
import sys, time
from pathlib import Path
from megatron_miniplm.artifacts.leases import Leases
leases = Leases(Path(sys.argv[1])).__enter__()
assert leases.claim(3)
print("claimed", flush=True)
input()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed block 3."""
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        yield process
        process.kill()


def test_a_process_of_this_host_that_has_ended_is_noticed_at_once(
    opened: Callable[[], Leases], tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    a = opened()
    assert not a.claim(3)
    holder.send_signal(signal.SIGSTOP)
    assert not a.claim(3)
    assert [entry.alive for entry in in_flight(tmp_path)] == [True]
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    assert [entry.alive for entry in in_flight(tmp_path)] == [False]
    assert a.claim(3)


@pytest.mark.parametrize(
    ("scope", "taken_over"),
    [
        ("here", True),
        ("another boot net:[1]", False),  # another host, or this host before a restart
        ("here, a container", False),
        ("", False),
    ],
)
def test_a_socket_that_cannot_be_seen_from_here_tells_nothing(
    opened: Callable[[], Leases], tmp_path: Path, scope: str, taken_over: bool
) -> None:
    a = opened()
    owner = Owner.of_this_process()
    record = replace(owner, sockets=scope.replace("here", owner.sockets)).to_bytes()
    (tmp_path / "claims" / "00000003.0").write_bytes(record)
    assert a.claim(3) == taken_over


def test_where_no_socket_can_be_had_the_expiry_alone_counts(
    opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases_module, "socket_address", lambda name: f"/nowhere/{name}")
    a = opened()
    monkeypatch.undo()
    b = opened()
    assert a.owner.sockets == ""
    assert a.claim(3)
    assert not b.claim(3)
    age(a, 90)
    assert b.claim(3)


def test_a_sandbox_without_unix_sockets_is_worked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))

    monkeypatch.setattr(socket, "socket", refuse)
    with Leases(tmp_path) as leases:
        assert leases.owner.sockets == ""
        assert leases.claim(3)


def test_claims_of_earlier_versions(opened: Callable[[], Leases], tmp_path: Path) -> None:
    """They are hard links, too, to `<owner>.alive`, whose time is the last sign of life."""
    a = opened()
    alive = tmp_path / "claims" / "host-1-1234.alive"
    alive.write_text(
        '{"name": "host-1-1234", "host": "host", "pid": 1, "job": null, "since": 1, '
        '"boot": "b", "pid_namespace": "pid:[1]", "process_start": 1}\n'
    )
    os.link(alive, tmp_path / "claims" / "00000003.0")
    assert not a.claim(3)
    os.utime(alive, (0, 0))
    assert a.claim(3)
    a.release(3)
    assert claims(tmp_path) == {alive.name}


@pytest.mark.parametrize(
    "values",
    [{"name": 1}, {"pid": "1"}, {"pid": True}, {"since": None}, {"host": 1}, {"sockets": None}, {"x": 1}],
)
def test_records_that_we_do_not_write_name_no_owner(values: dict[str, Any]) -> None:
    sound = json.loads(Owner.of_this_process().to_bytes())
    assert Owner.from_bytes(json.dumps(sound).encode()) is not None
    assert Owner.from_bytes(json.dumps(sound | values).encode()) is None


@pytest.mark.parametrize("name", ["", "x" * 200, "\0", "ä" * 60])
def test_any_name_can_be_asked_for(name: str) -> None:
    assert replace(Owner.of_this_process(), name=name).has_ended() in (True, False)


def test_a_claim_that_is_a_fifo_is_not_waited_for(opened: Callable[[], Leases], tmp_path: Path) -> None:
    a = opened()
    os.mkfifo(tmp_path / "claims" / "00000003.0")
    assert not a.claim(3)


def test_without_hard_links(opened: Callable[[], Leases], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(paths[0]), None, str(paths[1]))

    monkeypatch.setattr(os, "link", refuse)
    a, b = opened(), opened()
    assert a.claim(3)
    assert not b.claim(3)
    (tmp_path / "claims" / "00000004.0").touch()  # created, not yet written
    assert not b.claim(4)
    for block in (3, 4):
        os.utime(tmp_path / "claims" / f"0000000{block}.0", (0, 0))
    a._renew()
    assert not b.claim(3), "renewed"
    assert b.claim(4)
    a.__exit__()
    assert b.claim(3)
    for block in (3, 4):
        b.release(block)
    assert claims(tmp_path) == set()


def test_a_link_whose_answer_was_lost_is_ours(
    opened: Callable[[], Leases], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of NFS repeats its request, and then meets its own link."""
    link, a, b = os.link, opened(), opened()

    def link_twice(*paths: Path) -> None:
        link(*paths)
        if Path(paths[1]).name == "00000003.0":
            link(*paths)

    monkeypatch.setattr(os, "link", link_twice)
    assert a.claim(3)
    monkeypatch.undo()
    assert not b.claim(3)
    a.release(3)
    assert claims(tmp_path) == set()


@pytest.mark.parametrize("num_others", [1, 1024])
def test_a_claim_costs_the_same_beside_few_and_beside_many(
    opened: Callable[[], Leases], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_others: int
) -> None:
    a = opened()
    for number in range(num_others):
        (tmp_path / "claims" / f"{number:016x}.lease").touch()
        (tmp_path / "claims" / f"{number:08d}.0").touch()
    with monkeypatch.context() as patch:
        calls = counted(patch)
        assert a.claim(5000)
        assert calls == ["link"]
        calls.clear()
        assert not a.claim(0)
        assert sorted(calls) == sorted(["link", "utime", "stat", "open", "fstat", "read", "close"])
    assert a.listing() == (num_others + 1, {*range(num_others), 5000})


def test_in_flight(opened: Callable[[], Leases], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_flight(tmp_path) == []
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    a, b = opened(), opened()
    assert a.claim(0)
    assert a.claim(2)
    assert b.claim(1)
    age(b, 90)
    (tmp_path / "claims" / "00000003.0").write_text("not an owner")
    holders = in_flight(tmp_path)
    assert [holder.block for holder in holders] == [0, 1, 2, 3]
    assert [holder.alive for holder in holders] == [True, False, True, True]
    assert [holder.owner for holder in holders] == [a.owner, b.owner, a.owner, None]
    assert str(a.owner) == f"{socket.gethostname()} pid {os.getpid()} (job 4711)"
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    assert a.claim(1)
    assert [(holder.generation, holder.owner) for holder in in_flight(tmp_path)][1] == (1, a.owner)


def test_owners_are_unique_and_survive_their_file() -> None:
    one, other = Owner.of_this_process(), Owner.of_this_process()
    assert one.name != other.name
    assert Owner.from_bytes(one.to_bytes()) == one
    assert Owner.from_bytes(one.to_bytes()[:-5]) is None


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}, "10_3"),
    ],
)
def test_slurm_jobs_as_squeue_writes_them(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], job: str | None
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Owner.of_this_process().job == job


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    leases = Leases(tmp_path)
    with pytest.raises(InputError) as raised, leases:
        pass
    assert str(raised.value) == f"{leases.lease_path} cannot be used: No space left on device"
    assert names(tmp_path) == set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(socket_address(leases.owner.name))


def test_a_file_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from megatron_miniplm.artifacts.leases import Leases\nfrom megatron_miniplm.errors import MiniPLMError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "try:\n    Leases(Path(sys.argv[1])).__enter__()\nexcept MiniPLMError as error:\n    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert process.stdout.startswith(f"{tmp_path}/claims/")
    assert process.stdout.endswith(".lease cannot be used: File too large\n")
    assert process.stderr == ""
    assert names(tmp_path) == set()


def test_a_link_that_fails_names_the_claim(opened: Callable[[], Leases], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(paths[0]), None, str(paths[1]))

    a = opened()
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match=r"^.*/claims/00000003\.0 cannot be used: Permission denied$"):
        a.claim(3)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(InputError, match=r"^.*/claims cannot be used: File exists$"), Leases(tmp_path):
        pass


def test_a_renewal_that_fails_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renewals: list[str] = []

    def utime(path: Path) -> None:
        renewals.append(str(path))
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with Leases(tmp_path, renew_seconds=0.01) as a:
        monkeypatch.setattr(os, "utime", utime)
        deadline = time.monotonic() + 5
        while len(renewals) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.undo()
    assert [entry.getMessage() for entry in caplog.records] == [
        f"cannot renew the lease, others may take our blocks: {a.lease_path} cannot be used: Stale file handle"
    ]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "claim", "publish", "die", "leave", "sleep", "wake"]),
        st.integers(0, 2),
        st.integers(0, 2),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(operations=OPERATIONS)
def test_no_sequence_of_events_gives_a_block_to_two(
    operations: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A process that sleeps beyond its expiry wakes up and goes on with what it had, beside whoever took it over."""
    directory = tmp_path_factory.mktemp("store")
    published: set[int] = set()
    with ExitStack() as stack:
        actors = [stack.enter_context(Leases(directory, renew_seconds=HOUR_SECONDS)) for _ in range(3)]
        held: list[set[int]] = [set() for _ in actors]
        asleep = [False] * 3
        for operation, number, block in operations:
            actor, mine = actors[number], held[number]
            others = set().union(*(held[other] for other in range(3) if other != number and not asleep[other]))
            if operation == "sleep":
                age(actor, 90)
                asleep[number] = True
            elif operation in ("die", "leave"):  # and another process comes instead
                if operation == "leave":
                    actor.__exit__()
                else:
                    assert actor._socket is not None
                    actor._socket.close()
                actors[number] = stack.enter_context(Leases(directory, renew_seconds=HOUR_SECONDS))
                held[number], asleep[number] = set(), False
            elif operation == "wake" or asleep[number]:
                actor._renew()
                asleep[number] = False
            elif operation == "claim" and block not in published:
                won = actor.claim(block)
                assert won == (block not in others | mine)
                mine |= {block} if won else set()
            elif operation == "publish" and block in mine:
                published.add(block)
                actor.release(block)
                mine.remove(block)
        missing = set().union(*(blocks for blocks, sleeps in zip(held, asleep, strict=True) if not sleeps)) - published
        assert missing <= {holder.block for holder in in_flight(directory)}


class Blocks:
    """A store of blocks that are published in memory."""

    def __init__(self, num_blocks: int) -> None:
        self.plan = BlockPlan(num_sequences=num_blocks, block_sequences=1)
        self.published: set[int] = set()

    def has_block(self, block: int) -> bool:
        return block in self.published

    def missing_blocks(self) -> list[int]:
        return [block for block in range(self.plan.num_blocks) if block not in self.published]


def test_threads_share_the_blocks(tmp_path: Path) -> None:
    blocks = Blocks(200)
    logs: list[list[int]] = [[], [], []]

    def work(log: list[int]) -> None:
        with Leases(tmp_path) as leases:
            queue = BlockQueue(blocks, leases, leases.owner.name)
            while (block := queue.take()) is not None or not queue.is_empty:
                if block is not None:
                    log.append(block)
                    blocks.published.add(block)
                    leases.release(block)

    threads = [threading.Thread(target=work, args=[log]) for log in logs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert sorted(block for log in logs for block in log) == list(range(200)), "each once"
    assert not (tmp_path / "claims").exists()


WORKER = """
import os, sys, time
from pathlib import Path
from megatron_miniplm.artifacts.block_queue import BlockQueue
from megatron_miniplm.artifacts.atomic import write_once
from megatron_miniplm.artifacts.leases import Leases
from megatron_miniplm.artifacts.score_blocks import BlockPlan

directory = Path(sys.argv[1])
log = os.open(directory / f"log.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def say(event, block):
    os.write(log, f"{event} {block} {time.monotonic()}\\n".encode())

class Blocks:
    plan = BlockPlan(num_sequences=200, block_sequences=1)

    def path(self, block):
        return directory / "blocks" / str(block)

    def has_block(self, block):
        return self.path(block).exists()

    def missing_blocks(self):
        return [block for block in range(200) if not self.has_block(block)]

blocks = Blocks()
with Leases(directory, renew_seconds=0.1, expiry_seconds=30) as leases:
    queue = BlockQueue(blocks, leases, leases.owner.name)
    while True:
        taken = [block for block in (queue.take(), queue.take(), queue.take()) if block is not None]
        if not taken and queue.is_empty:
            break
        for block in taken:
            say("hold", block)
        for block in taken:
            time.sleep(0.01)
            if write_once(blocks.path(block), str(os.getpid()).encode(), durable=False):
                say("publish", block)
            say("free", block)
            leases.release(block)
        if not taken:
            time.sleep(0.02)
"""


def test_processes_that_are_killed_lose_no_block_and_share_none(tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    rng = random.Random(5)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", WORKER, tmp_path])

    workers, killed = [start() for _ in range(3)], {}
    began = time.monotonic()
    while len(killed) < 6 and len(list((tmp_path / "blocks").iterdir())) < 190:
        assert time.monotonic() - began < 60
        time.sleep(rng.uniform(0.05, 0.25))
        busy = [worker for worker in workers if (tmp_path / f"log.{worker.pid}").exists()]
        if busy:
            victim = rng.choice(busy)
            killed[victim.pid] = time.monotonic()  # it lives until here at least
            victim.send_signal(signal.SIGKILL)
            workers[workers.index(victim)] = start()
    assert len(killed) >= 3
    for worker in workers:
        assert worker.wait(timeout=60) == 0
    # A kill may leave its temporary file.
    published = {path.name for path in (tmp_path / "blocks").iterdir() if not path.name.startswith(".")}
    assert published == {str(block) for block in range(200)}

    holds: dict[int, list[tuple[float, float]]] = {block: [] for block in range(200)}
    publications = []
    for log in tmp_path.glob("log.*"):
        pid = int(log.suffix[1:])
        since: dict[int, float] = {}
        for event, block, seconds in (line.split() for line in log.read_text().splitlines()):
            if event == "hold":
                since[int(block)] = float(seconds)
            elif event == "publish":
                publications.append(int(block))
            else:
                holds[int(block)].append((since.pop(int(block)), float(seconds)))
        for block, start_seconds in since.items():
            holds[block].append((start_seconds, killed[pid]))
    for block, spans in holds.items():
        spans.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(spans)), (block, spans)
    # A kill may come between publication and its line in the log: never two lines, though.
    assert len(publications) == len(set(publications)) >= 200 - len(killed)
    assert sum(map(len, holds.values())) > 200, "no block was taken over: the kills missed"
