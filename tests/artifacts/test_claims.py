"""No block is held by two living owners, none is lost with a dead one, whatever the timing."""

import errno
import json
import os
import random
import signal
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
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import claims as claims_module
from megatron_miniplm.artifacts import owners
from megatron_miniplm.artifacts.claims import Claims, Handout
from megatron_miniplm.artifacts.heartbeats import in_flight, server_time_ns
from megatron_miniplm.artifacts.owners import Owner, slurm_job
from megatron_miniplm.errors import InputError

HOUR_SECONDS = 3600


def never(block: int) -> bool:
    return False


def names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "claims").iterdir()}


def age(directory: Path, owner: str, seconds: float) -> None:
    """Let an owner's last heartbeat lie that far in the past."""
    path = directory / "claims" / f"{owner}.alive"
    time_ns = server_time_ns(path.parent) - int(seconds * 1e9)
    os.utime(path, ns=(time_ns, time_ns))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Claims]]:
    """Opens claims on the same store under a name; the heartbeat never comes by itself."""
    with ExitStack() as stack:
        yield lambda name, **flags: stack.enter_context(
            Claims(tmp_path, owner=name, heartbeat_seconds=HOUR_SECONDS, **flags)
        )


def test_a_block_has_one_holder(opened: Callable[..., Claims]) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(7, is_done=never)
    assert not b.claim(7, is_done=never)
    assert not a.claim(7, is_done=never), "it has it already"
    a.release(7)
    assert b.claim(7, is_done=never)
    with pytest.raises(KeyError):
        a.release(7)


def test_blocks_are_handed_out_in_order(opened: Callable[..., Claims]) -> None:
    a, b = opened("a"), opened("b")
    assert a.next_blocks([2, 3, 5, 8], 2, is_done=never) == Handout(blocks=[2, 3], num_held=0)
    assert b.next_blocks([2, 3, 5, 8], 3, is_done=never) == Handout(blocks=[5, 8], num_held=2)
    assert a.next_blocks([2, 3, 5, 8], 1, is_done=never) == Handout(blocks=[], num_held=2)


def test_nothing_missing_is_told_apart_from_all_held(opened: Callable[..., Claims]) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(0, is_done=never)
    assert not b.next_blocks([0], 1, is_done=never).nothing_left
    assert b.next_blocks([], 1, is_done=never).nothing_left
    assert b.next_blocks([1, 2], 1, is_done=lambda block: True).nothing_left, "published since they were listed"


def test_a_block_that_was_published_while_it_was_claimed_is_not_handed_out(opened: Callable[..., Claims]) -> None:
    a = opened("a")
    asked: list[int] = []

    def is_done(block: int) -> bool:
        asked.append(block)
        return asked.count(block) > 1

    assert a.next_blocks([4], 1, is_done=is_done).nothing_left
    assert asked[:2] == [4, 4]
    assert names(a.directory.parent) == {"a.alive"}


def test_a_published_block_does_not_hide_the_next(opened: Callable[..., Claims]) -> None:
    first_look = {3: False, 4: False}

    def is_done(block: int) -> bool:
        was, first_look[block] = first_look[block], block == 3
        return was

    assert opened("a").next_blocks([3, 4], 1, is_done=is_done) == Handout(blocks=[4], num_held=0)


def test_what_is_visible_is_whole_and_names_the_owner(opened: Callable[..., Claims], tmp_path: Path) -> None:
    a = opened("a")
    a.claim(12, is_done=never)
    assert names(tmp_path) == {"a.alive", "00000012.0"}
    assert Owner.from_bytes((tmp_path / "claims" / "00000012.0").read_bytes()) == a.owner


def test_claims_vanish_at_the_end(tmp_path: Path) -> None:
    with Claims(tmp_path, owner="a") as a, Claims(tmp_path, owner="b") as b:
        assert a.next_blocks([0, 1], 2, is_done=never).blocks == [0, 1]
        assert b.claim(2, is_done=never)
        a.__exit__()
        assert names(tmp_path) == {"b.alive", "00000002.0"}
    assert not (tmp_path / "claims").exists()


@pytest.mark.parametrize(("seconds", "taken_over"), [(30, False), (90, True)])
def test_takeover_by_age(opened: Callable[..., Claims], tmp_path: Path, seconds: float, taken_over: bool) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    age(tmp_path, "a", seconds)
    assert b.claim(3, is_done=never) == taken_over
    assert ("00000003.1" in names(tmp_path)) == taken_over


def test_takeover_where_the_heartbeat_file_is_gone(opened: Callable[..., Claims], tmp_path: Path) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    (tmp_path / "claims" / "a.alive").unlink()
    assert b.claim(3, is_done=never)


def test_a_comeback_neither_steals_nor_removes(opened: Callable[..., Claims], tmp_path: Path) -> None:
    a, b, c = opened("a"), opened("b"), opened("c")
    assert a.claim(3, is_done=never)
    age(tmp_path, "a", 90)
    assert b.claim(3, is_done=never)
    assert not a.claim(3, is_done=never)
    a.release(3)  # of its own claim only
    assert names(tmp_path) >= {"00000003.1"}
    assert not c.claim(3, is_done=never)
    b.release(3)
    assert a.claim(3, is_done=never)


def test_release_of_a_published_block_removes_the_claims_of_the_dead(
    opened: Callable[..., Claims], tmp_path: Path
) -> None:
    published: set[int] = set()
    a, b, c = opened("a"), opened("b"), opened("c")
    for generation, owner in enumerate((a, b, c)):
        assert owner.claim(3, is_done=published.__contains__), generation
        age(tmp_path, owner.owner.name, 90)
    assert names(tmp_path) >= {"00000003.0", "00000003.1", "00000003.2"}
    published.add(3)
    c.release(3)
    assert names(tmp_path) == {"a.alive", "b.alive", "c.alive"}
    a.release(3)  # comes back and finds its claim gone


def test_a_heartbeat_from_the_future_counts_until_it_stands_still(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    age(tmp_path, "a", -HOUR_SECONDS)
    assert not b.claim(3, is_done=never)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 50)
    assert not b.claim(3, is_done=never)
    monkeypatch.setattr(time, "monotonic", lambda: began + 70)
    assert b.claim(3, is_done=never)


def test_a_heartbeat_that_moves_counts_however_old_it_looks(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that stamps its files itself, with a clock that is two minutes behind."""
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    assert not b.claim(3, is_done=never)
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 20)  # what was read is too old to be trusted
    ahead = server_time_ns(tmp_path / "claims") + HOUR_SECONDS * 10**9
    monkeypatch.setattr(Claims, "_beat", lambda self: ahead)
    age(tmp_path, "a", -1)
    assert not b.claim(3, is_done=never)


def test_the_heartbeat_beats(tmp_path: Path) -> None:
    with Claims(tmp_path, owner="a", heartbeat_seconds=0.02):
        path = tmp_path / "claims" / "a.alive"
        age(tmp_path, "a", 90)
        aged_ns = path.stat().st_mtime_ns
        deadline = time.monotonic() + 5
        while path.stat().st_mtime_ns == aged_ns:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert server_time_ns(path.parent) - path.stat().st_mtime_ns < 5e9
        path.unlink()  # as `ScoreStore.finish` does
        time.sleep(0.06)
        assert not path.exists()


def test_the_directory_may_vanish_under_us(opened: Callable[..., Claims], tmp_path: Path) -> None:
    a = opened("a")
    a.claim(0, is_done=never)
    for path in (tmp_path / "claims").iterdir():
        path.unlink()
    (tmp_path / "claims").rmdir()
    assert a.claim(1, is_done=never)
    a.release(0)
    assert names(tmp_path) == {"a.alive", "00000001.0"}


def record(tmp_path: Path, owner: Owner, block: int) -> None:
    """A claim and a heartbeat as another process leaves them."""
    directory = tmp_path / "claims"
    directory.mkdir(exist_ok=True)
    (directory / f"{owner.name}.alive").write_bytes(owner.to_bytes())
    os.link(directory / f"{owner.name}.alive", directory / f"{block:08d}.0")


@pytest.mark.parametrize(
    ("change", "taken_over"),
    [
        ({}, False),
        ({"process_start": 1}, True),  # the number has been given to another process
        ({"pid": 2**22 + 1}, True),  # above the kernel's limit
        ({"pid": 2**22 + 1, "host": "elsewhere"}, False),
        ({"pid": 2**22 + 1, "boot": "earlier"}, False),
        ({"pid": 2**22 + 1, "pid_namespace": "pid:[1]"}, False),  # a container
        ({"pid": 2**22 + 1, "boot": ""}, False),
    ],
)
def test_a_dead_process_of_this_host_is_seen_at_once(
    opened: Callable[..., Claims], tmp_path: Path, change: dict[str, int | str], taken_over: bool
) -> None:
    record(tmp_path, replace(Owner.of_this_process("other"), **change), 3)
    assert opened("a").claim(3, is_done=never) == taken_over


@pytest.mark.parametrize("is_there", [True, False])
def test_a_process_that_proc_hides_is_dead_only_if_it_is_gone(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Under `hidepid` /proc does not show the processes of other users."""
    (tmp_path / "proc").mkdir()
    owner = Owner.of_this_process("other")
    record(tmp_path, owner if is_there else replace(owner, pid=2**22 + 1), 3)
    monkeypatch.setattr(owners, "_PROC", tmp_path / "proc")
    assert opened("a").claim(3, is_done=never) == (not is_there)


@pytest.mark.parametrize(
    "values",
    [
        {"name": "/etc/passwd"},
        {"name": ""},
        {"pid": 0},
        {"pid": "1"},
        {"pid": True},
        {"since": None},
        {"host": 1},
        {"x": 1},
    ],
)
def test_records_that_we_do_not_write_name_no_owner(values: dict[str, Any]) -> None:
    sound = json.loads(Owner.of_this_process("other").to_bytes())
    assert Owner.from_bytes(json.dumps(sound).encode()) is not None
    assert Owner.from_bytes(json.dumps(sound | values).encode()) is None


def test_a_claim_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert Owner.read(tmp_path / "fifo") is None


def test_a_zombie_is_dead() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert replace(Owner.of_this_process("zombie"), pid=process.pid).has_died()
    process.wait()


def test_without_hard_links(opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(paths[0]), None, str(paths[1]))

    monkeypatch.setattr(os, "link", refuse)
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    assert not b.claim(3, is_done=never)
    (tmp_path / "claims" / "00000004.0").touch()  # created, not yet written
    assert not b.claim(4, is_done=never)
    os.utime(tmp_path / "claims" / "00000004.0", (0, 0))
    age(tmp_path, "a", 90)
    assert b.next_blocks([3, 4], 2, is_done=never).blocks == [3, 4]


def test_a_link_whose_answer_was_lost_is_ours(opened: Callable[..., Claims], monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def link_twice(*paths: str) -> None:
        link(*paths)
        link(*paths)

    a = opened("a")
    monkeypatch.setattr(os, "link", link_twice)
    assert a.claim(3, is_done=never)


def test_two_claims_in_the_same_instant_do_not_both_stand(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before `b` takes a block over from a dead owner, that one gives it up and `a` claims it anew."""
    dead, a, b = opened("dead"), opened("a"), opened("b")
    assert dead.claim(3, is_done=never)
    age(tmp_path, "dead", 90)

    def is_done_meanwhile(block: int) -> bool:
        if dead._held:
            dead.release(block)
            assert a.claim(block, is_done=never)
        return False

    assert b.next_blocks([3], 1, is_done=is_done_meanwhile) == Handout(blocks=[], num_held=1)
    assert names(tmp_path) == {"a.alive", "b.alive", "dead.alive", "00000003.0"}


def test_a_claim_below_a_higher_one_does_not_stand(opened: Callable[..., Claims], tmp_path: Path) -> None:
    """`b` lists before `a` claims the next generation, and would then make a lower one."""
    a, b = opened("a"), opened("b")

    def is_done_meanwhile(block: int) -> bool:
        if not (tmp_path / "claims" / "00000003.1").exists():
            os.link(tmp_path / "claims" / "a.alive", tmp_path / "claims" / "00000003.1")
        return False

    assert b.next_blocks([3], 1, is_done=is_done_meanwhile) == Handout(blocks=[], num_held=1)
    assert names(tmp_path) == {"a.alive", "b.alive", "00000003.1"}
    assert a.claim(3, is_done=never), "its own claim of which it does not know is in nobody's way"


def test_what_others_hold_costs_no_call_each(opened: Callable[..., Claims], monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = opened("a"), opened("b")
    missing = list(range(2001))
    assert len(a.next_blocks(missing, 2000, is_done=never).blocks) == 2000
    calls = []
    for name in ("stat", "open", "scandir", "link"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, f=function: (calls.append(f.__name__), f(*args))[1])
    assert b.next_blocks(missing, 1, is_done=never) == Handout(blocks=[2000], num_held=2000)
    assert calls.count("scandir") == 2
    assert len(calls) < 12


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the file system from now on, by name."""
    calls: list[str] = []
    for name in ("stat", "open", "scandir", "link", "utime", "unlink"):
        function = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, f=function, **flags: (calls.append(f.__name__), f(*args, **flags))[1]
        )
    return calls


def test_a_claim_costs_the_same_beside_few_and_beside_many(
    opened: Callable[..., Claims], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody is met there is one listing, and nobody's heartbeat is read."""
    for number in range(50):
        assert opened(f"other{number}").claim(number, is_done=never)
    a = opened("a")
    calls = counted(monkeypatch)
    assert a.next_blocks([90, 3, 4], 1, is_done=never) == Handout(blocks=[90], num_held=0)
    assert sorted(calls) == ["link", "scandir", "stat", "stat", "utime", "utime"]
    assert a.num_owners == 51


def test_who_looks_for_work_reads_few_heartbeats_at_a_time_and_all_in_time(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        assert opened(f"other{number}").claim(number, is_done=never)
    a = opened("a")
    age(tmp_path, "other40", 90)
    for expected in ([], [], [40]):
        with monkeypatch.context() as patch:
            calls = counted(patch)
            assert a.next_blocks(range(50), 1, is_done=never).blocks == expected
            assert calls.count("stat") < 24


def test_a_heartbeat_is_read_again_when_it_could_be_stale(
    opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = opened("a"), opened("b")
    assert a.claim(3, is_done=never)
    age(tmp_path, "a", 50)
    assert not b.claim(3, is_done=never)
    looks: list[str] = []
    beats = b._heartbeats.beats
    monkeypatch.setattr(b._heartbeats, "beats", lambda name, now_ns: (looks.append(name), beats(name, now_ns))[1])
    assert not b.claim(3, is_done=never)
    assert looks == [], "what was read a moment ago still shows life"
    now_ns = server_time_ns(tmp_path / "claims")
    monkeypatch.setattr(Claims, "_beat", lambda self: now_ns + 11 * 10**9)
    assert b.claim(3, is_done=never), "61 seconds old, and read again at once"
    assert "a" in looks


def test_a_dead_process_of_this_host_is_not_trusted_for_a_moment(opened: Callable[..., Claims], tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19])
    record(tmp_path, replace(Owner.of_this_process("other"), pid=process.pid, process_start=start), 3)
    b = opened("b")
    assert not b.claim(3, is_done=never)
    process.kill()
    process.communicate()
    assert b.claim(3, is_done=never)


def test_a_claim_without_a_look_does_not_pass_a_living_higher_one(
    opened: Callable[..., Claims], tmp_path: Path
) -> None:
    """Generation 0 is free again when its owner comes back from the dead and leaves; the block is another's by then."""
    dead, a, b = opened("dead"), opened("a"), opened("b")
    assert dead.claim(3, is_done=never)
    age(tmp_path, "dead", 90)
    assert a.claim(3, is_done=never)
    dead.release(3)
    assert names(tmp_path) >= {"00000003.1"}
    assert b.next_blocks([3, 4], 1, is_done=never) == Handout(blocks=[4], num_held=1)
    assert not any(name.startswith("00000003.") for name in names(tmp_path) - {"00000003.1"})


def test_in_flight(opened: Callable[..., Claims], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_flight(tmp_path) == []
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    a, b = opened("a"), opened("b")
    assert a.next_blocks([0, 2], 2, is_done=never).blocks == [0, 2]
    assert b.claim(1, is_done=never)
    age(tmp_path, "b", 90)
    (tmp_path / "claims" / "00000003.0").write_text("not an owner")
    for holders in (in_flight(tmp_path), a.in_flight()):
        assert [holder.block for holder in holders] == [0, 1, 2, 3]
        assert [holder.alive for holder in holders] == [True, False, True, True]
        assert [holder.owner and holder.owner.name for holder in holders] == ["a", "b", "a", None]
    assert str(a.in_flight()[0].owner) == f"{a.owner.host} pid {os.getpid()} (job 4711)"
    assert a.holders([1, 9]).keys() == {1}
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]


def test_owner_names_are_unique_and_name_host_pid_and_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    one, other = Owner.of_this_process(), Owner.of_this_process()
    assert one.name != other.name
    assert f"-{os.getpid()}-4711-" in one.name
    assert Owner.from_bytes(one.to_bytes()) == one
    assert Owner.from_bytes(one.to_bytes()[:-5]) is None
    assert Owner.of_this_process("a/b c").name == "a_b_c"


def test_slurm_jobs_as_squeue_writes_them() -> None:
    assert slurm_job({}) is None
    assert slurm_job({"SLURM_JOB_ID": "12"}) == "12"
    assert slurm_job({"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "3"}) == "10_3"


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(InputError) as raised, Claims(tmp_path, owner="a"):
        pass
    assert str(raised.value) == f"{tmp_path}/claims/a.alive cannot be used: No space left on device"
    assert names(tmp_path) == set()


def test_a_file_size_limit_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from megatron_miniplm.artifacts.claims import Claims\nfrom megatron_miniplm.errors import MiniPLMError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (64, 64))\n"
        "try:\n    Claims(Path(sys.argv[1]), owner='a').__enter__()\nexcept MiniPLMError as error:\n    print(error)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert (process.stdout, process.stderr) == (f"{tmp_path}/claims/a.alive cannot be used: File too large\n", "")
    assert names(tmp_path) == set()


def test_a_link_that_fails_names_the_claim(opened: Callable[..., Claims], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(paths[0]), None, str(paths[1]))

    a = opened("a")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match=r"^.*/claims/00000003\.0 cannot be used: Permission denied$"):
        a.claim(3, is_done=never)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "claims").write_text("a file")
    with pytest.raises(InputError, match=r"^.*/claims cannot be used: File exists$"), Claims(tmp_path):
        pass


def test_a_heartbeat_that_fails_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    beats: list[str] = []

    def utime(path: Path) -> None:
        beats.append(str(path))
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with Claims(tmp_path, owner="a", heartbeat_seconds=0.01):
        monkeypatch.setattr(claims_module.os, "utime", utime)
        deadline = time.monotonic() + 5
        while len(beats) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        monkeypatch.undo()
    assert [entry.getMessage() for entry in caplog.records] == [
        f"no heartbeat, others may take over our blocks: {tmp_path}/claims/a.alive cannot be used: Stale file handle"
    ]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["claim", "release", "die", "publish"]), st.integers(0, 2), st.integers(0, 2)),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(operations=OPERATIONS)
def test_no_sequence_of_events_gives_a_block_to_two(
    operations: list[tuple[str, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("store")
    published: set[int] = set()
    held: list[set[int]] = [set(), set(), set()]  # by the living
    with ExitStack() as stack:
        owners = [stack.enter_context(Claims(directory, heartbeat_seconds=HOUR_SECONDS)) for _ in held]
        for operation, actor, block in operations:
            mine = held[actor]
            if operation == "claim":
                everyone = set().union(*held)
                won = owners[actor].claim(block, is_done=published.__contains__)
                assert won == (block not in everyone and block not in published)
                mine |= {block} if won else set()
            elif operation == "die":  # and another process comes instead
                (directory / "claims" / f"{owners[actor].owner.name}.alive").unlink()
                owners[actor] = stack.enter_context(Claims(directory, heartbeat_seconds=HOUR_SECONDS))
                mine.clear()
            elif block in mine:
                if operation == "publish":
                    published.add(block)
                owners[actor].release(block)
                mine.remove(block)
        expected = set().union(*held)
        assert {holder.block for holder in in_flight(directory) if holder.alive} == expected


def test_threads_share_the_blocks(tmp_path: Path) -> None:
    published: set[int] = set()
    logs: list[list[int]] = [[], [], []]

    def work(log: list[int]) -> None:
        with Claims(tmp_path) as claims:
            while not (handout := claims.next_blocks(range(200), 2, is_done=published.__contains__)).nothing_left:
                for block in handout.blocks:
                    log.append(block)
                    published.add(block)
                    claims.release(block)

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
from typing import Any
from megatron_miniplm.artifacts.claims import Claims
from megatron_miniplm.artifacts.exclusive import write_once

directory = Path(sys.argv[1])
blocks = directory / "blocks"
log = os.open(directory / f"log.{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def say(event, block):
    os.write(log, f"{event} {block} {time.monotonic()}\\n".encode())

def is_done(block):
    return (blocks / str(block)).exists()

with Claims(directory, heartbeat_seconds=0.1, stale_seconds=30) as claims:
    while True:
        handout = claims.next_blocks([b for b in range(200) if not is_done(b)], 3, is_done=is_done)
        if handout.nothing_left:
            break
        for block in handout.blocks:
            say("hold", block)
        for block in handout.blocks:
            time.sleep(0.01)
            if write_once(blocks / str(block), str(os.getpid()).encode(), durable=False):
                say("publish", block)
            say("free", block)
            claims.release(block)
        if not handout.blocks:
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


def test_a_claim_is_json(opened: Callable[..., Claims], tmp_path: Path) -> None:
    a = opened("a")
    a.claim(0, is_done=never)
    assert list(json.loads((tmp_path / "claims" / "00000000.0").read_text())) == [
        "name",
        "host",
        "pid",
        "job",
        "since",
        "boot",
        "pid_namespace",
        "process_start",
    ]
